"""The proof of a growth: the same outputs on a probe, or the reason why not.

Shapes: a probe is a batch of the network's inputs.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from skipway.errors import InputError, SkipwayError, printable
from skipway.models.network import Network
from skipway.nn.shape_inference import Call, evaluation
from skipway.nn.skip import Skip

__all__ = ["record_calls", "choose_probe", "verify_outputs"]

_NEAR = 1e-5  # of the largest output, computed in float64: what is farther away is no rounding of weights
_ROWS, _SIDE, _SMALL_SIDE = 4, 64, 32  # of the random inputs that outputs are compared on


def choose_probe(network: nn.Module, probe: Tensor | None) -> Tensor:
    """Return the inputs to compare outputs on: `probe`, or random ones for a network that has a plan."""
    if probe is not None:
        if not isinstance(probe, Tensor) or probe.dim() < 2 or not len(probe):
            raise InputError(
                "a probe is a tensor with a batch of the network's inputs, such as torch.randn(4, 3, 32, 32)"
            )
        return probe.to(next((p.device for p in network.parameters()), probe.device))
    plan, spec = (network.plan, network.spec) if isinstance(network, Network) else ({}, None)
    if not plan:
        raise InputError("a network without a plan does not tell its inputs; give probe=x, a batch of them")
    if "in_features" in plan:
        shape: tuple[int, ...] = (plan["in_features"],)
    else:
        side = _SMALL_SIDE if plan.get("stem") in ("small", "whitening") else _SIDE
        shape = tuple(spec.input_shape) if spec is not None else (plan["in_chans"], side, side)
    inputs = torch.randn(_ROWS, *shape, generator=torch.Generator().manual_seed(0))
    parameter = next(network.parameters())
    return inputs.to(parameter.device, parameter.dtype)


def verify_outputs(
    network: nn.Module, grown: nn.Module, probe: Tensor, blocks: tuple[nn.Module, ...] = ()
) -> tuple[float, float]:
    """Return the largest difference of two outputs, and the largest output; refuse a difference.

    With `blocks`, which are identities, outputs must be equal to the last bit.
    """
    difference, largest = _compare_outputs(network, grown, probe)
    if blocks and difference:
        reason = _explain_difference(grown, probe, blocks)
        raise InputError(f"the grown network would give other outputs, by up to {difference:.3g}: {reason}")
    if difference:
        rounding = max([torch.finfo(p.dtype).eps for p in network.parameters() if p.is_floating_point()], default=0.0)
        wide = probe.double() if probe.is_floating_point() else probe
        exact, largest = _compare_outputs(copy.deepcopy(network).double(), copy.deepcopy(grown).double(), wide)
        if not exact <= max(_NEAR, 4 * rounding) * largest:
            raise InputError(
                f"the grown network would give other outputs, by up to {exact:.3g} of {largest:.3g}; one of its layers "
                "does more with channels than is known: grow the parts of it that stand beside that layer"
            )
    return difference, largest


def _compare_outputs(first: nn.Module, second: nn.Module, probe: Tensor) -> tuple[float, float]:
    """The largest difference of two outputs, and the largest output."""
    pairs = list(zip(_outputs(first, probe), _outputs(second, probe), strict=True))
    differences = [(float((p - q).abs().max()), float(p.abs().max())) for p, q in pairs]
    if any(difference != difference for difference, _ in differences):
        raise InputError("the network's outputs on the probe are not finite; grow it from weights that are")
    return max(d for d, _ in differences), max(size for _, size in differences)


def _outputs(network: nn.Module, probe: Tensor) -> list[Tensor]:
    """What the network gives in evaluation mode: a tensor, or several."""
    try:
        with evaluation(network), torch.no_grad():
            out = network(probe)
    except SkipwayError:
        raise
    except Exception as error:
        reason = printable((str(error).strip().splitlines() or [type(error).__name__])[0])
        raise InputError(
            f"the network cannot take the probe, {tuple(probe.shape)} of {probe.dtype}: {reason}; give probe=x, a "
            "batch as the network takes it"
        ) from error
    outputs = list(out) if isinstance(out, list | tuple) else [out]
    if not outputs or not all(isinstance(output, Tensor) and output.numel() for output in outputs):
        raise InputError("growing compares outputs that are a tensor or a list of them; wrap the network accordingly")
    return outputs


def _explain_difference(grown: nn.Module, probe: Tensor, blocks: tuple[nn.Module, ...]) -> str:
    """Explain why the first of the blocks that is no identity is none."""
    reasons: list[str] = []
    paths = {module: path for path, module in grown.named_modules()}

    def record(block: nn.Module, inputs: Any, out: Any) -> None:
        if not reasons and not inputs[0].equal(out):
            after = block.after if isinstance(block, Skip) else None
            reasons.append(
                f"{' '.join(repr(after).split())} after the join of {paths[block]} changes what reaches it; end the "
                "stage in front of it with ReLU too, or use blocks with norm and activation first"
                if after is not None
                else f"{paths[block]} does not give what it is given; its body must give zeros where its last weights "
                "are zero"
            )

    handles = [block.register_forward_hook(record) for block in blocks]
    try:
        with evaluation(grown), torch.no_grad():
            grown(probe)
    finally:
        for handle in handles:
            handle.remove()
    return reasons[0] if reasons else "layers behind the new blocks take notice of where they stand"


def record_calls(network: nn.Module, probe: Tensor) -> dict[nn.Module, Call]:
    """Record the shapes of the inputs and outputs of each layer, as the probe goes through."""
    calls: dict[nn.Module, Call] = {}

    def record(layer: nn.Module, inputs: Any, out: Any) -> None:
        shapes = tuple(tuple(x.shape) for x in inputs if isinstance(x, Tensor))
        calls[layer] = Call("", layer, shapes, tuple(out.shape) if isinstance(out, Tensor) else ())

    handles = [module.register_forward_hook(record) for module in network.modules()]
    try:
        _outputs(network, probe)
    finally:
        for handle in handles:
            handle.remove()
    return calls
