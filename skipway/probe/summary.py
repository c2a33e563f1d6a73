"""Summary: every layer's output shape, parameters, multiply-adds, memory and receptive field, without running data.

Shapes are those of one input with its batch first.
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

from skipway.errors import InputError, printable
from skipway.nn.chain import Chain
from skipway.nn.reversible import Reversible
from skipway.nn.shape_inference import Call, calls, evaluation, kept_buffers, on_meta
from skipway.nn.skip import Parallel, Skip
from skipway.probe.lint import find_mistakes
from skipway.probe.receptive_field import Fields

__all__ = ["Row", "Summary", "summary"]


@dataclass(frozen=True)
class Row:
    """One layer that computes something: where, what, its output's shape, parameters and multiply-adds (one input).

    What rows above have counted is not counted again: `parameters` are those that are new, `memory` is that of tensors
    that no row above keeps.

    memory: bytes that a training step keeps here for the way back (see `Summary.memory`); what is kept between two
        rows, as by a join, counts for the one above.
    receptive_field: pixels, along each axis of the input after its channels, that one position of the output can depend
        on. It is meant far from the edges, and can so be larger than the input. Where no positions are left, as behind
        a pool over all of them, or what comes from all of them is mixed in, as by squeeze and excitation, it is the
        input's size, and `sees_all` says so. Norms are taken to look at each position alone.
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

    @property
    def memory(self) -> int:
        """Bytes that a training step on the given input keeps between its way forward and its way back.

        It is what PyTorch's own layers hold on to on a CPU, in the numbers that the network has (float32 as a rule):
        each tensor once, the input too, but not parameters and buffers. A `Reversible` keeps its output alone. For the
        networks of `list_models` that is so to the byte. What drop path, `recompute` and the kernels for bfloat16 save
        is not taken off; recurrent layers and layers that drop by a function keep more.
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
        fixed = f" ({self.parameters - self.trainable:,} fixed)" if self.trainable != self.parameters else ""
        return "\n".join(
            [
                *lines,
                f"{self.parameters:,} parameters{fixed}, {self.macs:,} multiply-adds, {_size(self.memory)} kept while "
                f"training, for an input of {'x'.join(map(str, self.input_shape))}, {self.skips} "
                f"shortcut{'' if self.skips == 1 else 's'}",
                *(f"note: {note}" for note in self.notes),
            ]
        )


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.path,
        row.layer,
        "x".join(map(str, row.shape)),
        "shared" if row.shared else f"{row.parameters:,}",
        f"{row.macs:,}",
        _size(row.memory),
        "all" if row.sees_all else "x".join(map(str, row.receptive_field)),
    )


def _size(count: int) -> str:
    """A number of bytes as people read it."""
    if count < 1024:
        return f"{count} B" if count else "0"
    power = min((count.bit_length() - 1) // 10, 4)
    return f"{count / 1024**power:,.1f} {('KiB', 'MiB', 'GiB', 'TiB')[power - 1]}"


def summary(network: nn.Module, input_shape: tuple[int, ...]) -> Summary:
    """Layers of `network` for an input of `input_shape` (batch first), in the order in which they are called.

    Raises:
        ShapeError: a layer cannot take what reaches it; names its path.
    """
    called = calls(network, input_shape)
    records, notes = _record_pass(network, input_shape, called)
    computing = list(_computing_calls(called))
    ends = [number for number, *_ in computing[1:]] + [len(called)]  # of what counts for each row
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
        input_shape=tuple(input_shape),
        parameters=sum(p.numel() for p in parameters),
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        skips=sum(isinstance(m, Skip) for m in network.modules()),
        notes=[*find_mistakes(network, called, _with_one_sample(network, called, input_shape)), *notes],
    )


@dataclass
class _CallRecord:
    """A call in a pass with gradients: the bytes that it keeps itself, and what a position of its output sees."""

    module: nn.Module
    kept_bytes: int = 0
    field: tuple[tuple[int, ...], bool] = ((), False)


def _record_pass(network: nn.Module, shape: tuple[int, ...], called: list[Call]) -> tuple[list[_CallRecord], list[str]]:
    """What each of the calls keeps and sees; or nothing, and a note that says why it is not known."""
    reason = ""
    for meta in (True, False):  # fast, and as it would be with data
        recorder = _PassRecorder()
        try:
            recorder.run(network, shape, meta)
        except Exception as error:  # whatever a user's module does only here: its shapes are known all the same
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            continue
        if [p.module for p in recorder.ended] == [c.module for c in called]:
            return recorder.ended, []
        reason = "with gradients other layers are called than without"
    return [], [f"memory and receptive fields are not known: {printable(reason)}"]


class _PassRecorder:
    """Follows one pass with gradients over tensors without data; `ended` becomes its calls, as they end."""

    def __init__(self) -> None:
        self.ended: list[_CallRecord] = []
        self.running: list[_CallRecord] = []
        self.fields = Fields()
        self.known: dict[int, Any] = {}  # storages that count no more; alive, so that none takes the address of another

    def run(self, network: nn.Module, shape: tuple[int, ...], meta: bool) -> None:
        """The pass, on the meta device or on tensors that only seem to have data; the network stays as it is."""
        parameters = dict(network.named_parameters(remove_duplicate=False))
        trainable = {name: p.requires_grad for name, p in parameters.items()}
        like = next((p for p in parameters.values() if p.is_floating_point()), torch.empty(0))
        with ExitStack() as stack:
            enter = stack.enter_context
            for context in (evaluation(network), torch.enable_grad(), torch.random.fork_rng(devices=[])):
                enter(context)
            for module in network.modules():
                if isinstance(module, nn.modules.dropout._DropoutNd):
                    module.training = True  # for its mask, which is kept
            if meta:
                enter(on_meta(network))
                enter(torch.device("meta"))
                for name, twin in network.named_parameters(remove_duplicate=False):
                    twin.requires_grad_(trainable[name])
            else:
                enter(kept_buffers(network))
                enter(FakeTensorMode(allow_non_fake_inputs=True))
            x = torch.empty(tuple(shape), device="meta" if meta else like.device, dtype=like.dtype)
            for tensor in (*network.parameters(), *network.buffers()):
                self._count(tensor)
            for module in (m for m in network.modules() if not isinstance(m, torch.jit.ScriptModule)):
                stack.callback(module.register_forward_pre_hook(self._enter, prepend=True).remove)
                stack.callback(module.register_forward_hook(self._leave).remove)
            enter(saved_tensors_hooks(self._keep, lambda kept: kept))
            enter(self.fields)
            self.fields.begin(x)
            network(x)

    def _enter(self, module: nn.Module, args: Any) -> None:
        self.running.append(_CallRecord(module))

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        while self.running[-1].module is not module:  # a call that failed, in a module that goes on without it
            self.running.pop()
        record = self.running.pop()
        record.field = self.fields.of(output)
        if isinstance(module, Reversible) and output.requires_grad:
            record.kept_bytes = output.numel() * max(output.element_size(), 4)  # its halves, in float32 at least
        self.ended.append(record)

    def _keep(self, tensor: Tensor) -> None:
        reversible = any(isinstance(record.module, Reversible) for record in self.running)
        if self.running and not reversible:
            self.running[-1].kept_bytes += self._count(tensor)

    def _count(self, tensor: Tensor) -> int:
        """The bytes of the memory that a tensor lies in, the first time that it is seen."""
        storage = tensor.untyped_storage()
        new = storage._cdata not in self.known
        self.known[storage._cdata] = storage
        return storage.nbytes() if new else 0


def _computing_calls(called: list[Call]) -> Iterator[tuple[int, Call, list[nn.Parameter]]]:
    """The calls that compute something themselves, each with its number and the parameters that it uses.

    These are the innermost, and those around others that have parameters of their own.
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
