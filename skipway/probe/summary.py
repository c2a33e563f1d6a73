"""Summary: output shape, parameters, multiply-adds, memory and receptive field of each layer, without data.

Input shapes include the batch axis.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves

from skipway.errors import InputError, reason_of
from skipway.nn.chain import Chain
from skipway.nn.channel_axis import channel_axis_of
from skipway.nn.example_inputs import Example, ExampleInputs
from skipway.nn.parallel import Parallel
from skipway.nn.reversible import Reversible
from skipway.nn.shape_inference import Call, evaluation, kept_buffers, on_meta
from skipway.nn.skip import Skip
from skipway.probe.call_inputs import (
    Dtypes,
    calls_of,
    examples_of,
    shape_of,
    shape_text,
    unfused_attention,
    with_one_sample,
)
from skipway.probe.lint import find_mistakes
from skipway.probe.receptive_field import Fields
from skipway.utils.format_text import count_of

__all__ = ["Row", "Summary", "summary"]


@dataclass(frozen=True)
class Row:
    """Measurements of one layer that computes something. Parameters and memory are counted in their first row only.

    Attributes:
        path: path of the layer.
        layer: class name of the layer.
        shape: shape of the output, or a tuple of shapes for several outputs.
        parameters: number of parameters, 0 if rows above have counted them.
        macs: multiply-adds for the whole input.
        shared: True if rows above have counted all its parameters.
        memory: bytes that a training step saves for the backward pass (see `Summary.memory`). Tensors saved between two
            rows, as by a join, count for the row above.
        receptive_field: input pixels, along each axis other than batch and channels, that one output position depends
            on. It ignores the edges and can exceed the input. Norms count as elementwise.
        sees_all: True if the output depends on the whole input, as after global pooling or squeeze-and-excitation;
            `receptive_field` is then the input size.
    """

    path: str
    layer: str
    shape: tuple[Any, ...]
    parameters: int
    macs: int
    shared: bool
    memory: int = 0
    receptive_field: tuple[int, ...] = ()
    sees_all: bool = False


@dataclass(frozen=True)
class Summary:
    """Summary of a network; prints as a table.

    Attributes:
        rows: layers in call order.
        input_shape: shape of the input, with its batch axis; a tuple or dictionary of shapes for several inputs.
        parameters: number of parameters.
        trainable: number of parameters that require a gradient.
        skips: number of Skip modules.
        notes: likely mistakes in the network.
    """

    rows: list[Row]
    input_shape: Any
    parameters: int
    trainable: int
    skips: int
    notes: list[str] = field(default_factory=list)

    @property
    def macs(self) -> int:
        """Multiply-adds for the whole input, without norms and activations."""
        return sum(r.macs for r in self.rows)

    @property
    def memory(self) -> int:
        """Bytes that a training step saves between its forward and its backward pass.

        Counts the tensors that PyTorch's layers save on a CPU in the dtype of the network (usually float32). Each
        tensor counts once, including the input; parameters and buffers do not count. A `Reversible` saves only its
        output. The number is exact for the architectures of `list_models`. It does not include the savings of
        stochastic depth, `recompute` and the bfloat16 kernels. Recurrent layers and functional dropout save more.
        """
        return sum(r.memory for r in self.rows)

    def as_dict(self) -> dict[str, Any]:
        """Return the rows, the totals and the notes as plain values."""
        return {**asdict(self), "macs": self.macs, "memory": self.memory}

    def __str__(self) -> str:
        fields = any(r.receptive_field for r in self.rows)
        head = ("layer", "kind", "output", "parameters", "multiply-adds", "memory", "receptive field")
        table = [row if fields else row[:-1] for row in (head, *map(_cells, self.rows))]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if place < 3 else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in table
        ]
        inputs = shape_text(self.input_shape)
        noun = "inputs" if ", " in inputs or " " in inputs else "an input"
        frozen = f" ({self.parameters - self.trainable:,} frozen)" if self.trainable != self.parameters else ""
        return "\n".join(
            [
                *lines,
                f"{self.parameters:,} parameters{frozen}, {self.macs:,} multiply-adds, {_size(self.memory)} of "
                f"activations saved in training, for {noun} of {inputs}, "
                f"{count_of(self.skips, 'shortcut')}",
                *(f"note: {note}" for note in self.notes),
            ]
        )


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.path,
        row.layer,
        shape_text(row.shape),
        "shared" if row.shared else f"{row.parameters:,}",
        f"{row.macs:,}",
        _size(row.memory),
        "all" if row.sees_all else "x".join(map(str, row.receptive_field)),
    )


def _size(count: int) -> str:
    """Format a number of bytes with a binary unit."""
    if count < 1024:
        return f"{count} B" if count else "0"
    power = min((count.bit_length() - 1) // 10, 4)
    return f"{count / 1024**power:,.1f} {('KiB', 'MiB', 'GiB', 'TiB')[power - 1]}"


def summary(
    network: nn.Module,
    *inputs: Example,
    dtypes: Dtypes = None,
    input_shape: Example | None = None,
    **named: Example,
) -> Summary:
    """Summarize `network` for inputs of one shape, without running data.

    Receptive fields are those in the first tensor.

    Args:
        network: network to summarize.
        inputs: shape of each input with its batch axis, such as (1, 3, 224, 224); or an example tensor, or a dictionary
            or list of shapes and tensors.
        dtypes: dtype of the inputs, or one for each; None is that of the parameters. `nn.Embedding` takes torch.int64.
        input_shape: another name of the first input.
        named: inputs passed by name, such as `mask=(2, 5)`.

    Returns:
        A `Summary`, which prints as a table.

    Raises:
        InputError: an input is no shape.
        ShapeError: a layer does not accept its input. The error names the path of the layer.

    Example:
        >>> print(summary(nn.Linear(4, 2), (1, 4)))
        layer  kind    output  parameters  multiply-adds  memory
               Linear  1x2             10              8    16 B
        10 parameters, 8 multiply-adds, 16 B of activations saved in training, for an input of 1x4, 0 shortcuts
    """
    examples = examples_of(inputs, named, dtypes, input_shape)
    called = calls_of(network, examples)
    records, notes = _record_pass(network, examples, called)
    computing = list(_computing_calls(called))
    ends = [number for number, *_ in computing[1:]] + [len(called)]  # each row counts the calls before the next row
    rows, counted, begin = [], set(), 0
    for (number, call, own), end in zip(computing, ends, strict=True):
        new = [p for p in own if p not in counted]
        counted.update(new)
        count, shared = sum(p.numel() for p in new), bool(own) and not new
        memory, begin = sum(p.kept_bytes for p in records[begin:end]), end
        receptive_field, sees_all = records[number].field if records else ((), False)
        rows.append(
            Row(
                path=call.path,
                layer=type(call.module).__name__,
                shape=call.output,
                parameters=count,
                macs=_macs(call),
                shared=shared,
                memory=memory,
                receptive_field=receptive_field,
                sees_all=sees_all,
            )
        )
    parameters = list(network.parameters())
    return Summary(
        rows=rows,
        input_shape=shape_of(examples),
        parameters=sum(p.numel() for p in parameters),
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        skips=sum(isinstance(m, Skip) for m in network.modules()),
        notes=[*find_mistakes(network, called, _calls_with_one_sample(network, called, examples)), *notes],
    )


@dataclass
class _CallRecord:
    """Memory and receptive field of one call in a pass with gradients."""

    module: nn.Module
    kept_bytes: int = 0
    field: tuple[tuple[int, ...], bool] = ((), False)


def _record_pass(
    network: nn.Module, examples: ExampleInputs, called: list[Call]
) -> tuple[list[_CallRecord], list[str]]:
    """Return memory and receptive field of each call, or an empty list and a note with the reason."""
    reason = ""
    first = next(iter(called[-1].inputs), ()) if called else ()
    axes = (channel_axis_of(call.module) for call in called if call.inputs and call.inputs[0] == first)
    channel_axis = next((axis for axis in axes if axis is not None), 1)
    for meta in (True, False):  # the meta device is fast; fake tensors behave more like real data
        recorder = _PassRecorder(channel_axis)
        try:
            recorder.run(network, examples, meta)
        except Exception as error:  # a user's module may fail only with gradients; its shapes are known anyway
            reason = reason_of(error)
            continue
        if [p.module for p in recorder.ended] == [c.module for c in called]:
            return recorder.ended, []
        reason = "the calls with gradients differ from those without"
    return [], [f"memory and receptive fields are unknown: {reason}"]


class _PassRecorder:
    """Recorder of one pass with gradients over tensors without data; `ended` lists the calls in the order they end."""

    def __init__(self, channel_axis: int) -> None:
        self.channel_axis = channel_axis
        self.ended: list[_CallRecord] = []
        self.running: list[_CallRecord] = []
        self.fields = Fields()
        self.known: dict[int, Any] = {}  # storages already counted; kept alive so that no address is reused

    def run(self, network: nn.Module, examples: ExampleInputs, meta: bool) -> None:
        """Run the pass on the meta device or on fake tensors, without changing the network."""
        parameters = dict(network.named_parameters(remove_duplicate=False))
        trainable = {name: p.requires_grad for name, p in parameters.items()}
        like = next((p for p in parameters.values() if p.is_floating_point() or p.is_complex()), torch.empty(0))
        with ExitStack() as stack:
            enter = stack.enter_context
            for context in (evaluation(network), torch.enable_grad(), torch.random.fork_rng(devices=[])):
                enter(context)
            for module in network.modules():
                if isinstance(module, nn.modules.dropout._DropoutNd):
                    module.training = True  # a training step saves the dropout mask
            if meta:
                enter(on_meta(network))
                enter(torch.device("meta"))
                for name, twin in network.named_parameters(remove_duplicate=False):
                    twin.requires_grad_(trainable[name])
            else:
                enter(kept_buffers(network))
                enter(FakeTensorMode(allow_non_fake_inputs=True))
            enter(unfused_attention())
            inputs, named = examples.build("meta" if meta else like.device, like.dtype)
            for tensor in (*network.parameters(), *network.buffers()):
                self._count(tensor)
            for module in (m for m in network.modules() if not isinstance(m, torch.jit.ScriptModule)):
                stack.callback(module.register_forward_pre_hook(self._enter, prepend=True).remove)
                stack.callback(module.register_forward_hook(self._leave).remove)
            enter(saved_tensors_hooks(self._keep, lambda kept: kept))
            enter(self.fields)
            first = next((x for x in tree_leaves((inputs, named)) if isinstance(x, Tensor)), None)
            if first is not None:
                self.fields.begin(first, self.channel_axis)
            network(*inputs, **named)

    def _enter(self, module: nn.Module, args: Any) -> None:
        self.running.append(_CallRecord(module))

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        while self.running[-1].module is not module:  # calls that failed in a module that caught the error
            self.running.pop()
        record = self.running.pop()
        record.field = self.fields.of(output)
        if isinstance(module, Reversible) and output.requires_grad:
            record.kept_bytes = output.numel() * max(output.element_size(), 4)  # both halves, at least in float32
        self.ended.append(record)

    def _keep(self, tensor: Tensor) -> None:
        reversible = any(isinstance(record.module, Reversible) for record in self.running)
        if self.running and not reversible:
            self.running[-1].kept_bytes += self._count(tensor)

    def _count(self, tensor: Tensor) -> int:
        """Return the bytes of a tensor's storage, or 0 if the storage was counted before."""
        storage = tensor.untyped_storage()
        new = storage._cdata not in self.known
        self.known[storage._cdata] = storage
        return storage.nbytes() if new else 0


def _computing_calls(called: list[Call]) -> Iterator[tuple[int, Call, list[nn.Parameter]]]:
    """Yield (number, call, parameters) of the calls that compute something themselves.

    These are the innermost calls, and the calls of containers that hold parameters directly.
    """
    around = {path.rpartition(".")[0] for path, *_ in called if path}
    for path in list(around):
        around |= {".".join(path.split(".")[:depth]) for depth in range(path.count(".") + 1)}
    for number, call in enumerate(called):
        innermost = call.path not in around
        own = list(call.module.parameters(recurse=innermost))
        container = isinstance(call.module, Chain | Parallel | Skip | nn.Sequential)
        if own or (innermost and not container):
            yield number, call, own


def _calls_with_one_sample(network: nn.Module, called: list[Call], examples: ExampleInputs) -> list[Call]:
    lone = with_one_sample(examples)
    if shape_of(lone) == shape_of(examples):
        return called
    try:
        return calls_of(network, lone)
    except InputError:  # the network only accepts a fixed batch size
        return []


def _macs(call: Call) -> int:
    """Return the multiply-adds of a layer with weights, including the products of attention."""
    module, inputs, output = call.module, call.inputs, call.output
    if isinstance(module, nn.Linear):
        return prod(output) * module.in_features
    if isinstance(module, nn.Bilinear):
        return prod(output) * module.in1_features * module.in2_features
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return prod(inputs[0]) * module.weight[0].numel()  # each input value meets all weights of its channel
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
