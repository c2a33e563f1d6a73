"""Summary: every layer's output shape, parameters and multiply-adds, without running data.

Shapes are those of one input with its batch first.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

from skipway.shapes import output_shapes
from skipway.skip import Chain, Parallel, Skip

__all__ = ["Row", "Summary", "summary"]


@dataclass(frozen=True)
class Row:
    """One layer that computes something: where, what, its output's shape, parameters and multiply-adds (one input)."""

    path: str
    layer: str
    shape: tuple[Any, ...]
    parameters: int
    macs: int
    shared: bool


@dataclass(frozen=True)
class Summary:
    """The rows of a network with their totals; prints as a table."""

    rows: list[Row]
    input_shape: tuple[int, ...]
    parameters: int
    trainable: int
    skips: int

    @property
    def macs(self) -> int:
        """Multiply-adds of convolutions and linear layers for the given input."""
        return sum(r.macs for r in self.rows)

    def __str__(self) -> str:
        table = [("layer", "kind", "output", "parameters", "multiply-adds")]
        table += [
            (r.path, r.layer, "x".join(map(str, r.shape)), "shared" if r.shared else f"{r.parameters:,}", f"{r.macs:,}")
            for r in self.rows
        ]
        widths = [max(len(row[i]) for row in table) for i in range(5)]
        lines = [
            "  ".join([*(t.ljust(w) for t, w in zip(row[:3], widths, strict=False)),
                       *(t.rjust(w) for t, w in zip(row[3:], widths[3:], strict=True))])
            for row in table
        ]  # fmt: skip
        fixed = f" ({self.parameters - self.trainable:,} fixed)" if self.trainable != self.parameters else ""
        return "\n".join(
            [
                *lines,
                f"{self.parameters:,} parameters{fixed}, {self.macs:,} multiply-adds for an input of "
                f"{'x'.join(map(str, self.input_shape))}, {self.skips} shortcut{'' if self.skips == 1 else 's'}",
            ]
        )


def summary(network: nn.Module, input_shape: tuple[int, ...]) -> Summary:
    """Layers of `network` for an input of `input_shape` (batch first), in the order in which they are called.

    Raises:
        ShapeError: a layer cannot take what reaches it; names its path.
    """
    rows, seen = [], set()
    for path, module, shape in output_shapes(network, input_shape):
        if isinstance(module, Chain | Parallel | Skip | nn.Sequential) or next(module.children(), None) is not None:
            continue
        own = sum(p.numel() for p in module.parameters())
        rows.append(Row(path, type(module).__name__, shape, own, _macs(module, shape), id(module) in seen and own > 0))
        seen.add(id(module))
    parameters = list(network.parameters())
    return Summary(
        rows,
        tuple(input_shape),
        sum(p.numel() for p in parameters),
        sum(p.numel() for p in parameters if p.requires_grad),
        sum(isinstance(m, Skip) for m in network.modules()),
    )


def _macs(module: nn.Module, shape: tuple[Any, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    if isinstance(module, nn.Linear):
        return count * module.in_features
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return count * module.weight[0].numel()
    return 0
