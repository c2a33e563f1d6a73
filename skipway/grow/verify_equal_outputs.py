"""Verification of a growth: compare the outputs of both networks on a probe, and explain a difference.

Shapes: a probe is a batch of inputs of the network.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from skipway.data.image_spec import Spec
from skipway.data.images.image_rows import ImageRows
from skipway.errors import InputError, SkipwayError, reason_of
from skipway.grow.channel_map import ChannelMap, select_channels
from skipway.models.network import Network
from skipway.nn.shape_inference import Call, evaluation
from skipway.nn.skip import Skip
from skipway.training.precision import without_tf32
from skipway.utils.format_text import join_names

__all__ = ["Probe", "record_calls", "choose_probe", "verify_outputs"]

_NEAR = 1e-5  # relative to the largest output, in float64; a larger difference is not rounding of weights
Probe = Tensor | ImageRows  # a batch of inputs
_ROWS, _SIDE, _SMALL_SIDE = 4, 64, 32  # batch size and image sizes of random probes


def choose_probe(network: nn.Module, probe: Probe | None) -> Probe:
    """Return the inputs of the comparison: `probe`, or random inputs for a network with a plan.

    Those of a network with feature columns are ImageRows.

    Raises:
        InputError: `probe` is not a batch of inputs, or it is missing and the network has no plan.
    """
    if probe is not None:
        if not isinstance(probe, Probe) or len(probe.shape) < 2 or not len(probe):
            raise InputError(
                f"probe: expected a batch of inputs, got {_describe(probe)}. Pass a tensor such as "
                "torch.randn(4, 3, 32, 32)."
            )
        return probe.to(next((p.device for p in network.parameters()), probe.device))
    plan, spec = (network.plan, network.spec) if isinstance(network, Network) else ({}, None)
    if not plan:
        raise InputError("probe: expected a batch of inputs for a network without a plan, got none. Pass probe=x.")
    if "in_features" in plan:
        shape: tuple[int, ...] = (plan["in_features"],)
    else:
        side = _SMALL_SIDE if plan.get("stem") in ("small", "whitening") else _SIDE
        shape = tuple(spec.input_shape) if spec is not None else (plan["in_chans"], side, side)
    inputs = torch.randn(_ROWS, *shape, generator=torch.Generator().manual_seed(0))
    parameter = next(network.parameters())
    inputs = inputs.to(parameter.device, parameter.dtype)
    if not isinstance(spec, Spec) or not spec.feature_columns:
        return inputs
    return ImageRows(inputs, torch.from_numpy(spec.row_spec.random_rows(_ROWS)).to(parameter.device))


def verify_outputs(
    network: nn.Module,
    grown: nn.Module,
    probe: Probe,
    blocks: tuple[nn.Module, ...] = (),
    *,
    maps: Mapping[str, ChannelMap] | None = None,
    axis: int = 1,
) -> tuple[float, float]:
    """Compare the outputs of two networks in evaluation mode.

    Args:
        network: Network before growth.
        grown: Network after growth.
        probe: Batch of inputs.
        blocks: New blocks that must be identities. If there are any, the outputs must be bitwise equal.
        maps: Maps of the output channels of the layers of a wider network by path, to find the layer that differs.
        axis: Axis of the channels.

    Returns:
        The largest difference of two outputs, and the largest output.

    Raises:
        InputError: The outputs differ by more than rounding.
    """
    difference, largest = _compare_outputs(network, grown, probe)
    if blocks and difference:
        reason = _explain_difference(grown, probe, blocks)
        raise InputError(f"growth changes the outputs by up to {difference:.3g}: {reason}")
    if difference:
        rounding = max([torch.finfo(p.dtype).eps for p in network.parameters() if p.is_floating_point()], default=0.0)
        wide = probe.double() if isinstance(probe, Tensor) and probe.is_floating_point() else probe
        first, second = copy.deepcopy(network).double(), copy.deepcopy(grown).double()
        exact, largest = _compare_outputs(first, second, wide)
        if not exact <= max(_NEAR, 4 * rounding) * largest:
            path = _first_difference(first, second, wide, maps or {}, axis)
            place = "A layer" if path is None else f"The layer at {path or 'the top'}"
            raise InputError(
                f"growth changes the outputs: expected equal ones, got a difference of {exact:.3g} (largest output "
                f"{largest:.3g}). {place} mixes channels in an unknown way. Grow the other parts of the network."
            )
    return difference, largest


def _first_difference(
    network: nn.Module, grown: nn.Module, probe: Probe, maps: Mapping[str, ChannelMap], axis: int
) -> str | None:
    """Return the path of the first layer whose output in the grown network is not that of its old channels."""
    old, new = _layer_outputs(network, probe), _layer_outputs(grown, probe)
    for path, channels in maps.items():
        if path in old and path in new:
            expected = select_channels(old[path], channels, axis)
            if expected.shape == new[path].shape and not torch.allclose(expected, new[path], rtol=0, atol=_NEAR):
                return path
    return None


def _layer_outputs(network: nn.Module, probe: Probe) -> dict[str, Tensor]:
    """Return the output of each layer by path."""
    outputs: dict[str, Tensor] = {}
    handles = []
    for path, module in network.named_modules():

        def record(module: nn.Module, inputs: Any, out: Any, path: str = path) -> None:
            if isinstance(out, Tensor):
                outputs[path] = out

        handles.append(module.register_forward_hook(record))
    try:
        _outputs(network, probe)
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def _compare_outputs(first: nn.Module, second: nn.Module, probe: Probe) -> tuple[float, float]:
    """Return the largest difference of two outputs, and the largest output."""
    pairs = list(zip(_outputs(first, probe), _outputs(second, probe, is_grown=True), strict=True))
    differences = [(float((p - q).abs().max()), float(p.abs().max())) for p, q in pairs]
    if any(difference != difference for difference, _ in differences):
        raise InputError("growth: expected finite outputs on the probe, got NaN or infinity. Grow from finite weights.")
    return max(d for d, _ in differences), max(size for _, size in differences)


def _outputs(network: nn.Module, probe: Probe, is_grown: bool = False) -> list[Tensor]:
    """Return the outputs of the network in evaluation mode, as a list of tensors."""
    running: list[nn.Module] = []

    def enter(module: nn.Module, inputs: Any) -> None:
        running.append(module)

    def leave(module: nn.Module, inputs: Any, out: Any) -> None:
        running.pop()

    handles = [module.register_forward_pre_hook(enter) for module in network.modules()]
    handles += [module.register_forward_hook(leave) for module in network.modules()]
    try:
        with evaluation(network), without_tf32(), torch.no_grad():
            out = network(probe)
    except Exception as error:
        reason = reason_of(error)
        if running and not isinstance(error, SkipwayError):  # whose messages name the layer
            path = next((path for path, module in network.named_modules() if module is running[-1]), "")
            reason = f"{type(running[-1]).__name__} at {path or 'the top'}: {reason}"
        if is_grown:
            raise InputError(
                f"cannot grow the network: the layers no longer fit together: {reason}. Replace this layer by one of "
                "torch.nn, or grow the other parts."
            ) from error
        raise InputError(
            f"the network failed on the probe {tuple(probe.shape)} of {probe.dtype}: {reason}. Pass probe=x, a valid "
            "batch of inputs."
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    outputs = tree_leaves(out)
    if not outputs or not all(isinstance(output, Tensor) and output.numel() for output in outputs):
        kinds = [type(v).__name__ for v in outputs if not isinstance(v, Tensor)] or [type(out).__name__]
        raise InputError(
            f"growth: expected tensors as output, got {join_names(dict.fromkeys(kinds), limit=3)}. Wrap the network."
        )
    return outputs


def _explain_difference(grown: nn.Module, probe: Probe, blocks: tuple[nn.Module, ...]) -> str:
    """Explain why the first block that is not an identity changes its input."""
    reasons: list[str] = []
    paths = {module: path for path, module in grown.named_modules()}

    def record(block: nn.Module, inputs: Any, out: Any) -> None:
        if not reasons and not inputs[0].equal(out):
            after = block.after if isinstance(block, Skip) else None
            reasons.append(
                f"{' '.join(repr(after).split())} after the join of {paths[block]} changes its input. End the stage "
                "before it with ReLU too, or use pre-activation blocks."
                if after is not None
                else f"{paths[block]} is not an identity. Its body must return zeros when its last weights are zero."
            )

    handles = [block.register_forward_hook(record) for block in blocks]
    try:
        with evaluation(grown), without_tf32(), torch.no_grad():
            grown(probe)
    finally:
        for handle in handles:
            handle.remove()
    return reasons[0] if reasons else "layers after the new blocks depend on their position. Grow another part."


def _describe(probe: Any) -> str:
    return f"a tensor {tuple(probe.shape)}" if isinstance(probe, Tensor) else type(probe).__name__


def record_calls(network: nn.Module, probe: Probe) -> dict[nn.Module, Call]:
    """Run the probe, and return the input and output shapes of each layer."""
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
