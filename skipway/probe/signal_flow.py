"""Flow: how large activations are on the way through a network, and gradients on the way back, body against shortcut.

Shapes: B samples of a batch, C channels, K classes, * any further axes.
Sources: signals that grow or decay with depth, He et al. 2015, arXiv:1502.01852; what bodies add beside what
shortcuts keep, De and Smith 2020, arXiv:2002.10444.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from skipway.errors import InputError
from skipway.nn.reversible import Coupling
from skipway.nn.skip import Skip
from skipway.probe.block_stats import Plain, blocks_of, in_mode, natural_loss, unrolled, untouched
from skipway.probe.flow_hooks import BlockCall, MeanSquare, norm_of, record_flow, weights_of

__all__ = ["BlockFlow", "Flow", "Flows", "LayerFlow", "flow"]

Loss = Callable[[Tensor, Any], Tensor]


@dataclass(frozen=True)
class BlockFlow(Plain):
    """One call of one block. Sizes are root mean squares; gradients are norms over the whole batch.

    into, out: what comes in, what goes out.
    body: body(x); of a plain block too, before the activation that follows it. None where it was not called.
    shortcut: shortcut(x), None in a plain block.
    added: what of the body reaches the join: body(x), times the scale or the gate where the join has one.
    ratio: added over shortcut.
    gradient_in, gradient_out: gradient of the loss by what comes in, by what goes out.
    """

    path: str
    kind: str
    into: float | None
    body: float | None
    shortcut: float | None
    added: float | None
    out: float | None
    ratio: float | None
    gradient_in: float | None
    gradient_out: float | None


@dataclass(frozen=True)
class LayerFlow(Plain):
    """One layer with weights of two or more axes, in the order in which layers are called.

    out: root mean square of what it gives; None where it is not called by itself.
    weight: root mean square of its weights; `count` is their number.
    gradient_norm: norm of the loss's gradient by all of them; None where they are not trained or not used.
    gradient: the same as a root mean square, for each weight.
    """

    path: str
    kind: str
    count: int
    out: float | None
    weight: float
    gradient_norm: float | None
    gradient: float | None


@dataclass(frozen=True)
class Flow(Plain):
    """A network's blocks and layers in the order of their calls; `notes` say what grows, decays or stands still."""

    mode: str
    loss: float
    blocks: list[BlockFlow]
    layers: list[LayerFlow]
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        table = [["block", "kind", "in", "body", "shortcut", "out", "ratio", "gradient in", "gradient out"]]
        for b in self.blocks:
            sizes = (b.into, b.body, b.shortcut, b.out, b.ratio, b.gradient_in, b.gradient_out)
            table.append([b.path, b.kind, *("-" if v is None else f"{v:.3g}" for v in sizes)])
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join([*map(str.ljust, row[:2], widths), *map(str.rjust, row[2:], widths[2:])]) for row in table]
        return "\n".join([*lines, f"loss {self.loss:.4g}, {self.mode} mode", *(f"note: {n}" for n in self.notes)])


def flow(
    network: nn.Module,
    x: Tensor,
    y: Tensor | None = None,
    loss: Loss | None = None,
    *,
    mode: str = "training",
    factor: float = 100.0,
) -> Flow:
    """Sizes of activations and gradients along the depth of `network`, for one batch; the network is left as it was.

    Blocks are Skips, Couplings and plain rows of layers that stand where others have a Skip, so that networks with and
    without shortcuts can be laid side by side. One step forward and one back: cheap enough for every epoch.

    Args:
        x: (B, *) a batch.
        y: classes (B,) or real numbers; None draws the same random classes each time, as many kinds as the network
            has outputs, which is all that a network at its beginning knows of classes.
        loss: takes (outputs, y); None is cross entropy for classes, and the mean squared error for real numbers.
        mode: "training" has norms take the batch's own statistics, which alone mean something at the beginning;
            "evaluation" their running ones. What is random in training (dropout, drop_path) rests in both.
        factor: notes tell of what grows or decays over the depth by more than this.

    Reversible and recomputed blocks run in full view for once, so that each of them is seen.

    Raises:
        InputError: x, y, the loss and the network do not fit each other.
    """
    if not isinstance(x, Tensor) or not x.dim():
        raise InputError(f"flow takes a batch x as a tensor (B, *), not {type(x).__name__}; stack samples to one")
    if not factor > 1:
        raise InputError(f"factor is a number above 1, not {factor}; 100 tells of what grows or decays a hundredfold")
    device = next(network.parameters(), x).device
    with torch.inference_mode(False), torch.enable_grad(), untouched(network), unrolled(network):
        in_mode(network, mode)
        leaf = x.detach().to(device, copy=True).requires_grad_(x.is_floating_point())
        with record_flow(network) as record:
            outputs = network(leaf.clone())  # so that a layer may change what it is given in place
            record.running = False
            value = _loss(outputs, y, loss, device)
            trained = [p for p in network.parameters() if p.requires_grad]
            sources = [leaf, *trained] if leaf.requires_grad else trained
            by_source = torch.autograd.grad(value, sources, allow_unused=True)
    gradients = dict(zip(trained, by_source[len(sources) - len(trained) :], strict=True))
    blocks, layers = [_block_flow(call) for call in record.calls], _layer_flows(network, record.outputs, gradients)
    notes = [*_growth_notes(blocks, layers, factor), *_call_notes(network, blocks)]
    return Flow(mode=mode, loss=float(value.detach()), blocks=blocks, layers=layers, notes=notes)


class Flows:
    """Flows of one batch taken on the way: at the beginning, after an epoch, of several networks.

    `take` measures and remembers under a name; `by_name` has them all, and `as_dict` as the plain values that one
    plot shows side by side. Arguments are those of `flow`.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor | None = None,
        loss: Loss | None = None,
        *,
        mode: str = "training",
        factor: float = 100.0,
    ):
        self.batch, self.options = (x, y, loss), {"mode": mode, "factor": factor}
        self.by_name: dict[str, Flow] = {}

    def take(self, network: nn.Module, name: str) -> Flow:
        """The flow of `network` now, remembered as `name`; a name taken before is written over."""
        self.by_name[name] = flow(network, *self.batch, **self.options)  # type: ignore[arg-type]
        return self.by_name[name]

    def as_dict(self) -> dict[str, Any]:
        """{name: plain values of its flow}, in the order in which they were taken."""
        return {name: measured.as_dict() for name, measured in self.by_name.items()}


def _loss(outputs: Any, y: Tensor | None, loss: Loss | None, device: torch.device) -> Tensor:
    """One number to differentiate."""
    if loss is None and y is None:
        if not isinstance(outputs, Tensor) or outputs.dim() < 2 or outputs.shape[1] < 2:
            kind = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise InputError(
                f"random classes need outputs (B, K, *) of two kinds or more, not {kind}; give y or a loss"
            )
        shape = outputs.shape[:1] + outputs.shape[2:]
        y = torch.randint(outputs.shape[1], shape, generator=torch.Generator().manual_seed(0))
    y = y.to(device) if isinstance(y, Tensor) else y
    value = natural_loss(outputs, y) if loss is None else loss(outputs, y)  # type: ignore[arg-type]
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        kind = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise InputError(
            f"the loss is to be one number that depends on the network through autograd, not {kind}"
            f"{' without a gradient' if isinstance(value, Tensor) and not value.requires_grad else ''}; mend the loss"
        )
    return value.reshape(())


def _block_flow(call: BlockCall) -> BlockFlow:
    """Return the measurements of one call of a block as plain numbers."""
    module = call.block.module
    into, body, added = call.into.root(), call.body.root(), call.added.root()
    plain_skip = isinstance(module, Skip) and module.shortcut is None
    plain_coupling = isinstance(module, Coupling) and module.shortcuts is None
    shortcut = into if plain_skip or plain_coupling else call.shortcut.root()
    added = body if added is None else added
    ratio = None if shortcut is None or added is None else _ratio(added, shortcut)
    return BlockFlow(
        path=call.block.path,
        kind=call.block.kind,
        into=into,
        body=body,
        shortcut=shortcut,
        added=added,
        out=call.out.root(),
        ratio=ratio,
        gradient_in=call.gradient("in"),
        gradient_out=call.gradient("out"),
    )


def _layer_flows(
    network: nn.Module, outputs: dict[nn.Module, MeanSquare], gradients: Mapping[nn.Parameter, Tensor | None]
) -> list[LayerFlow]:
    paths = {module: path for path, module in network.named_modules() if weights_of(module)}
    layers = []
    for module in [*outputs, *(m for m in paths if m not in outputs)]:  # the latter are used, but not called
        weights = weights_of(module)
        count = sum(p.numel() for p in weights)
        of_weights = [g for p in weights if (g := gradients.get(p)) is not None]
        norm = math.sqrt(sum(float(norm_of(g)) ** 2 for g in of_weights)) if of_weights else None
        size = math.sqrt(sum(float(norm_of(p)) ** 2 for p in weights) / count)
        out = outputs[module].root() if module in outputs else None
        per_weight = None if norm is None else norm / math.sqrt(sum(g.numel() for g in of_weights))
        layers.append(
            LayerFlow(
                path=paths[module],
                kind=type(module).__name__,
                count=count,
                out=out,
                weight=size,
                gradient_norm=norm,
                gradient=per_weight,
            )
        )
    return layers


def _growth_notes(blocks: list[BlockFlow], layers: list[LayerFlow], factor: float) -> Iterator[str]:
    """What grows, decays, stands still or is not finite."""
    if blocks:
        places = [b.path for b in blocks]
        forward = [blocks[0].into, *(b.out for b in blocks)]
        back = [blocks[0].gradient_in, *(b.gradient_out for b in blocks)]
    else:
        places, forward, back = ([getattr(layer, key) for layer in layers] for key in ("path", "out", "gradient"))
    for name, values in (("activations", forward), ("gradients", back)):
        if any(v is not None and not math.isfinite(v) for v in values):
            yield f"{name} are not finite"
    if not places:
        return
    first, last = places[0], places[-1]
    growth = _growth(forward[0], forward[-1])
    if not 1 / factor <= growth <= factor:
        yield f"activations {_growth_words(growth)} from {first} to {last}"
    growth = _growth(back[-1], back[0])
    if not 1 / factor <= growth <= factor:
        end = "explode: early layers take the largest steps" if growth > 1 else "vanish: early layers hardly learn"
        yield f"gradients {_growth_words(growth)} on the way back from {last} to {first}; they {end}"
    untrained = [layer.path for layer in layers if layer.gradient == 0]
    if untrained:
        yield (
            f"{len(untrained)} of {len(layers)} layers get no gradient in this step, the first of them {untrained[0]}"
            " (behind what begins as zeros they do from the second step on)"
        )


def _growth(begin: float | None, end: float | None) -> float:
    """Divide `end` by `begin`; 1 if one of them is unknown, not finite or zero."""
    if begin is None or end is None or not math.isfinite(begin) or not math.isfinite(end) or begin == 0:
        return 1.0
    return end / begin


def _ratio(value: float, divisor: float) -> float:
    if divisor:
        return value / divisor
    return math.inf if value else math.nan


def _growth_words(growth: float) -> str:
    if growth > 1:
        return f"grow {growth:.3g} times"
    return f"decay to 1/{1 / growth:.3g}" if growth else "decay to zero"


def _call_notes(network: nn.Module, blocks: list[BlockFlow]) -> Iterator[str]:
    """Blocks that were not called, or more than once."""
    calls = Counter(b.path for b in blocks)
    paths = [block.path for block in blocks_of(network)]
    if not paths:
        yield "there is no Skip, no Coupling and no row of plain blocks in the network; its layers alone are listed"
    for path in paths:
        if calls[path] != 1:
            yield f"{path} was not called" if not calls[path] else f"{path} was called {calls[path]} times"
