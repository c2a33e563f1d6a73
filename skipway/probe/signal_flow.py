"""Signal flow: measure activations and gradients along the depth of a network, body against shortcut.

Shapes: B samples of a batch, C channels, K classes, * any further axes.
Sources: signals that grow or decay with depth, He et al. 2015, arXiv:1502.01852; size of the residual branch relative
to the shortcut, De and Smith 2020, arXiv:2002.10444.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from skipway.errors import InputError
from skipway.nn.reversible import Coupling
from skipway.nn.skip import Skip
from skipway.probe.block_stats import Plain, blocks_of, in_mode, natural_loss, unrolled, untouched
from skipway.probe.call_inputs import call_network, check_batch
from skipway.probe.flow_hooks import BlockCall, MeanSquare, norm_of, record_flow, weights_of

__all__ = ["BlockFlow", "Flow", "Flows", "LayerFlow", "flow"]

Loss = Callable[[Tensor, Any], Tensor]


@dataclass(frozen=True)
class BlockFlow(Plain):
    """Measurements of one call of a block: root mean squares of tensors, and gradient norms over the whole batch.

    Attributes:
        path: path of the block.
        kind: "skip", "coupling" or "plain".
        into, out: input and output of the block.
        body: body(x), in a plain block before the activation after it; None if the body was not called.
        shortcut: shortcut(x); None in a plain block.
        added: branch that reaches the join: body(x), multiplied by the scale or the gate of the join if it has one.
        ratio: `added` divided by `shortcut`.
        gradient_in, gradient_out: gradient of the loss with respect to the input and the output.
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
    """Measurements of one layer with weights of two or more axes.

    Attributes:
        path: path of the layer.
        kind: class name of the layer.
        count: number of weights.
        out: root mean square of the output; None if the layer is not called directly.
        weight: root mean square of the weights.
        gradient_norm: norm of the gradient of the loss; None if the weights are frozen or unused.
        gradient: root mean square of the same gradient.
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
    """Signal flow of a network; prints as a table.

    Attributes:
        mode: "training" or "evaluation".
        loss: loss of the batch.
        blocks: measurements of the blocks, in call order.
        layers: measurements of the layers, in call order.
        notes: reports of signals that grow, vanish, are not finite or have no gradient.
    """

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
    x: Any,
    y: Tensor | None = None,
    loss: Loss | None = None,
    *,
    mode: str = "training",
    factor: float = 100.0,
) -> Flow:
    """Measure activations and gradients along the depth of `network` for one batch.

    Runs one forward and one backward pass, and does not change the network. Blocks are Skips, Couplings and plain
    sequences of layers in the place of a Skip, so networks with and without shortcuts can be compared. Reversible and
    checkpointed blocks run as plain blocks, so that each of them is measured.

    Args:
        network: model to measure.
        x: batch of inputs (B, *); a dictionary or list of tensors for a network that takes one; or a tuple with one of
            these for each input.
        y: class indices (B,) or real numbers. None uses random classes, the same in every call.
        loss: function of (outputs, y). None uses cross entropy for classes and the mean squared error for numbers.
        mode: "training" normalizes with the statistics of the batch, which untrained networks need; "evaluation" with
            the running statistics. Dropout and stochastic depth are off in both.
        factor: growth or decay over the depth, above which a note reports it.

    Returns:
        The measurements, as a `Flow`.

    Raises:
        InputError: `x`, `y`, the loss and the network do not match.
        ShapeError: the network has uninferred sizes.

    Example:
        >>> network = nn.Sequential(Skip(nn.Linear(4, 4)), nn.Linear(4, 2))
        >>> [block.path for block in flow(network, torch.randn(8, 4)).blocks]
        ['0']
    """
    check_batch(x)
    if not factor > 1:
        raise InputError(f"invalid factor: expected a number above 1, got {factor}. The default is 100.")
    device = next((p.device for p in network.parameters()), tree_leaves(x)[0].device)
    with torch.inference_mode(False), torch.enable_grad(), untouched(network), unrolled(network):
        in_mode(network, mode)
        batch = tree_map(lambda tensor: _leaf(tensor, device), x)
        leaves = [leaf for leaf in tree_leaves(batch) if leaf.requires_grad]
        inputs = tree_map(Tensor.clone, batch)  # a layer may change its input in place
        with record_flow(network) as record:
            outputs = call_network(network, inputs)
            record.running = False
            value = _loss(outputs, y, loss, device)
            trained = [p for p in network.parameters() if p.requires_grad]
            sources = [*leaves, *trained]
            by_source = torch.autograd.grad(value, sources, allow_unused=True)
    gradients = dict(zip(trained, by_source[len(sources) - len(trained) :], strict=True))
    blocks, layers = [_block_flow(call) for call in record.calls], _layer_flows(network, record.outputs, gradients)
    notes = [*_growth_notes(blocks, layers, factor), *_call_notes(network, blocks)]
    return Flow(mode=mode, loss=float(value.detach()), blocks=blocks, layers=layers, notes=notes)


class Flows:
    """Signal flows of one batch, measured at several points of training or for several networks.

    The arguments are those of `flow`. `by_name` maps each name to its `Flow`.

    Example:
        >>> flows = Flows(torch.randn(8, 4))
        >>> flow_at_init = flows.take(nn.Linear(4, 2), "at initialization")
        >>> list(flows.as_dict())
        ['at initialization']
    """

    def __init__(
        self,
        x: Any,
        y: Tensor | None = None,
        loss: Loss | None = None,
        *,
        mode: str = "training",
        factor: float = 100.0,
    ):
        self.batch, self.options = (x, y, loss), {"mode": mode, "factor": factor}
        self.by_name: dict[str, Flow] = {}

    def take(self, network: nn.Module, name: str) -> Flow:
        """Measure the flow of `network` and store it as `name`, replacing an earlier flow of this name."""
        self.by_name[name] = flow(network, *self.batch, **self.options)  # type: ignore[arg-type]
        return self.by_name[name]

    def as_dict(self) -> dict[str, Any]:
        """Return {name: plain values of its flow}, in the order of measurement."""
        return {name: measured.as_dict() for name, measured in self.by_name.items()}


def _leaf(tensor: Tensor, device: torch.device) -> Tensor:
    differentiable = tensor.is_floating_point() or tensor.is_complex()
    return tensor.detach().to(device, copy=True).requires_grad_(differentiable)


def _loss(outputs: Any, y: Tensor | None, loss: Loss | None, device: torch.device) -> Tensor:
    """Return the scalar loss to differentiate."""
    if loss is None and y is None:
        if not isinstance(outputs, Tensor) or outputs.dim() < 2 or outputs.shape[1] < 2:
            kind = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise InputError(
                f"cannot draw random classes: expected outputs (B, K, *) with K of at least 2, got {kind}. Pass y or "
                "a loss."
            )
        shape = outputs.shape[:1] + outputs.shape[2:]
        y = torch.randint(outputs.shape[1], shape, generator=torch.Generator().manual_seed(0))
    y = y.to(device) if isinstance(y, Tensor) else y
    value = natural_loss(outputs, y) if loss is None else loss(outputs, y)  # type: ignore[arg-type]
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        kind = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise InputError(
            f"invalid loss: expected a scalar tensor that requires a gradient, got {kind}"
            f"{' without a gradient' if isinstance(value, Tensor) and not value.requires_grad else ''}. Return a "
            "differentiable scalar from the loss."
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
    for module in [
        *outputs,
        *(m for m in paths if m not in outputs),
    ]:  # uncalled layers last
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
    """Yield notes on signals that grow, vanish, are not finite or have no gradient."""
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
        yield f"gradients {_growth_words(growth)} from {last} back to {first}; they {end}"
    untrained = [layer.path for layer in layers if layer.gradient == 0]
    if untrained:
        yield (
            f"{len(untrained)} of {len(layers)} layers get no gradient in this step, starting with {untrained[0]} "
            "(expected at initialization: zero-initialized branches block the gradient in the first step only)"
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
    return f"shrink to 1/{1 / growth:.3g}" if growth else "shrink to zero"


def _call_notes(network: nn.Module, blocks: list[BlockFlow]) -> Iterator[str]:
    """Yield notes on blocks that were not called exactly once."""
    calls = Counter(b.path for b in blocks)
    paths = [block.path for block in blocks_of(network)]
    if not paths:
        yield "the network has no Skip, no Coupling and no plain blocks; only its layers are measured"
    for path in paths:
        if calls[path] != 1:
            yield f"{path} was not called" if not calls[path] else f"{path} was called {calls[path]} times"
