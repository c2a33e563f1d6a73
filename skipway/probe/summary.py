"""Summary: every layer's output shape, parameters and multiply-adds, without running data.

Shapes are those of one input with its batch first.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any

from torch import nn

from skipway.errors import InputError
from skipway.probe.mistakes import mistakes
from skipway.shapes import Call, calls
from skipway.skip import Chain, Parallel, Skip

__all__ = ["Row", "Summary", "summary"]


@dataclass(frozen=True)
class Row:
    """One layer that computes something: where, what, its output's shape, parameters and multiply-adds (one input).

    What rows above have counted is not counted again: `parameters` are those that are new.
    """

    path: str
    layer: str
    shape: tuple[Any, ...]
    parameters: int
    macs: int
    shared: bool


@dataclass(frozen=True)
class Summary:
    """The rows of a network with their totals and what is likely to be wrong with it; prints as a table."""

    rows: list[Row]
    input_shape: tuple[int, ...]
    parameters: int
    trainable: int
    skips: int
    notes: list[str] = field(default_factory=list)

    @property
    def macs(self) -> int:
        """Multiply-adds for the given input, of all that multiplies by weights; not of norms and activations."""
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
                *(f"note: {note}" for note in self.notes),
            ]
        )


def summary(network: nn.Module, input_shape: tuple[int, ...]) -> Summary:
    """Layers of `network` for an input of `input_shape` (batch first), in the order in which they are called.

    Raises:
        ShapeError: a layer cannot take what reaches it; names its path.
    """
    called = calls(network, input_shape)
    rows, seen = [], set()
    for call, own in _working(called):
        new = [p for p in own if p not in seen]
        seen.update(new)
        count = sum(p.numel() for p in new)
        rows.append(Row(call.path, type(call.module).__name__, call.output, count, _macs(call), bool(own) and not new))
    parameters = list(network.parameters())
    return Summary(
        rows,
        tuple(input_shape),
        sum(p.numel() for p in parameters),
        sum(p.numel() for p in parameters if p.requires_grad),
        sum(isinstance(m, Skip) for m in network.modules()),
        mistakes(network, called, _with_one_sample(network, called, input_shape)),
    )


def _working(called: list[Call]) -> Iterator[tuple[Call, list[nn.Parameter]]]:
    """The calls that compute something themselves, each with the parameters that they use.

    These are the innermost, and those around others that have parameters of their own.
    """
    around = {path.rpartition(".")[0] for path, *_ in called if path}
    around |= {".".join(path.split(".")[:i]) for path in around for i in range(path.count(".") + 1)}
    for call in called:
        innermost = call.path not in around
        own = list(call.module.parameters(recurse=innermost))
        container = isinstance(call.module, Chain | Parallel | Skip | nn.Sequential)
        if own or (innermost and not container):
            yield call, own


def _with_one_sample(network: nn.Module, called: list[Call], shape: tuple[int, ...]) -> list[Call]:
    if not shape or shape[0] == 1:
        return called
    try:
        return calls(network, (1, *shape[1:]))
    except InputError:  # a network for batches of one size
        return []


def _macs(call: Call) -> int:
    """Multiply-adds of what multiplies by weights, and of attention's products."""
    module, inputs, output = call.module, call.inputs, call.output
    if isinstance(module, nn.Linear):
        return prod(output) * module.in_features
    if isinstance(module, nn.Bilinear):
        return prod(output) * module.in1_features * module.in2_features
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return prod(inputs[0]) * module.weight[0].numel()  # every value that comes in meets every weight of its channel
    if isinstance(module, nn.modules.conv._ConvNd):
        return prod(output) * module.weight[0].numel()
    if isinstance(module, nn.RNNBase):
        weights = sum(p.numel() for p in module.parameters() if p.dim() == 2)
        return prod(inputs[0][:-1]) * weights
    if isinstance(module, nn.MultiheadAttention) and len(inputs) >= 3:
        queries, keys, values = (prod(shape[:-1]) for shape in inputs[:3])
        width, length = module.embed_dim, inputs[1][1 if module.batch_first and len(inputs[1]) == 3 else 0]
        weights = 2 * queries * width + keys * (module.kdim or width) + values * (module.vdim or width)
        return width * (weights + 2 * queries * length)
    return 0
