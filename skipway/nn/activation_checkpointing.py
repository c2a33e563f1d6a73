"""Activation checkpointing: keep only the inputs of groups of blocks, and recompute the rest in the backward pass.

It trades time for memory. Of n blocks in groups of k, a training step keeps n / k inputs and the activations of k
blocks, instead of those of n. Each block is computed forward twice.
Source: Chen et al. 2016, arXiv:1604.06174.
"""

import mmap
import weakref
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.parameter import is_lazy

from skipway.errors import InputError
from skipway.kernels.layer_dispatch import call_layer, run_layers
from skipway.nn.chain import Chain
from skipway.nn.in_place import refuse_in_place_change, version_of
from skipway.nn.layer_state import LayerState, differentiable_tensors
from skipway.nn.reversible import Coupling, Reversible
from skipway.nn.rng_replay import (
    RngSnapshot,
    can_recompute,
    differentiable_once,
    gradients_of,
    needed_gradients,
    rerun_backward,
)
from skipway.nn.skip import Skip

__all__ = ["recompute"]

AnyModule = TypeVar("AnyModule", bound=nn.Module)
_LARGE = 2**20  # bytes
# A forked child must not share these pages with its parent. Only Unix has such a flag.
_PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
_INSIDE = 3  # memory of a block's activations over that of its input: between 2 (basic) and 4 (bottleneck)


def recompute(network: AnyModule, every: int | str = "auto") -> AnyModule:
    """Enable activation checkpointing in `network`, in place.

    In training, only the input of each group of blocks is stored, and the backward pass computes the group again, with
    the buffers and in the mode of the forward pass. Gradients, buffers and random choices are bitwise equal to those
    without checkpointing. Hooks of parameters and backward hooks run once, forward hooks in both passes.

    Outputs without gradients, and all outputs in torch.func, torch.fx, torch.jit, torch.compile and torch.export, are
    computed as usual. In plain autograd, second derivatives raise an error.

    On Linux, set GLIBC_TUNABLES=glibc.malloc.tcache_count=0 before Python starts, as `skipway train --recompute` does.
    glibc then reuses freed memory, which saves several times as much.

    Args:
        network: module with chains of blocks: a `Chain` that contains a `Skip`, or only `Chain`s.
        every: number of blocks in a group. "stages" makes each stage one group. "auto" (default) minimizes memory:
            the square root of a third of the blocks of the stage. It leaves out the end of the network, whose
            activations are freed before memory peaks. "none" disables checkpointing.

    Returns:
        `network` itself.

    Raises:
        InputError: `every` is invalid, or the network has no chain of blocks that are not reversible.

    >>> network = recompute(Chain(*(Skip(nn.Linear(4, 4)) for _ in range(6))), every=2)
    >>> network(torch.ones(1, 4)).shape
    torch.Size([1, 4])
    """
    if every not in ("auto", "stages", "none") and (not isinstance(every, int) or isinstance(every, bool) or every < 1):
        raise InputError(
            f'recompute: expected every to be a positive int, "stages", "auto" or "none", got {every!r}. Use "auto".'
        )
    rows = list(_rows_of_blocks(network))
    if not rows and every != "none":
        raise InputError(
            "cannot enable recompute: expected a Chain of blocks that are not reversible, got none. "
            "Wrap the blocks in skipway.Chain."
        )
    counts = [every if isinstance(every, int) else _group_of(len(row), every) for row in rows]
    # The backward pass frees the end of the network before it recomputes the first group, which is the largest. The
    # end may therefore keep as much as that group needs. A block needs half as much as one of the stage before.
    spared = counts[0] * 2 ** (len(rows) - 1) if every == "auto" else 0
    for row, count in zip(rows, counts, strict=True):
        last = spared if row is rows[-1] else 0
        row.forward_impl = None if every == "none" else partial(_in_groups, every=count, pages=_Pages(), spared=last)
    return network


def _group_of(blocks: int, every: str) -> int:
    return blocks if every == "stages" else max(1, round((blocks / _INSIDE) ** 0.5))


def _rows_of_blocks(root: nn.Module) -> Iterator[Chain]:
    """Yield the outermost Chains of blocks (at least one Skip, or only Chains) without reversible layers.

    A Skip next to stages, which are Chains of Skips, does not make them its blocks.
    """
    children = list(root.children())
    if any(isinstance(child, Reversible | Coupling) for child in children):
        return
    blocks = [isinstance(child, Chain | Skip) for child in children]
    is_row = all(blocks) or (_has_skips(children) and not any(_has_skips(child.children()) for child in children))
    if isinstance(root, Chain) and blocks and is_row:
        yield root
        return
    for child in children:
        yield from _rows_of_blocks(child)


def _has_skips(layers: Iterable[nn.Module]) -> bool:
    return any(isinstance(layer, Skip) for layer in layers)


def _in_groups(layers: Sequence[nn.Module], x: Any, *, every: int, pages: "_Pages", spared: int = 0) -> Any:
    """Run `layers` in checkpointed groups of `every` layers; the last `spared` layers keep their activations."""
    end = max(0, len(layers) - spared)
    for begin in range(0, end, every):
        group = layers[begin : min(begin + every, end)]
        leaves = differentiable_tensors(group)
        if can_recompute(x) and (leaves or x.requires_grad) and not any(map(is_lazy, leaves)):
            history = x[:0].clone() if x.dim() else x  # the link to the layers before, which a copy of x has not
            x = _Group.apply(group, pages, x, history, *leaves)
        else:  # nothing to differentiate here, or autograd does it
            x = run_layers(group, x, call_layer)
    return run_layers(layers[end:], x, call_layer)


class _Group(Function):
    """The output of a group; the parameters are arguments so that autograd requests their gradients."""

    @staticmethod
    def forward(
        ctx: Any, group: Sequence[nn.Module], pages: "_Pages", x: Tensor, history: Tensor, *leaves: Tensor
    ) -> Any:
        ctx.group, ctx.state, ctx.rng = group, LayerState(group), RngSnapshot(x.device)
        ctx.generator_states, ctx.history = ctx.rng.generator_states(), history
        ctx.save_for_backward(pages.copy_of(x))
        first = x.detach().clone() if ctx.state.in_place else x.detach()
        version = version_of(first)
        with ctx.rng.autocast_context():
            out = run_layers(group, first, call_layer)
        if not ctx.state.in_place:
            refuse_in_place_change(first, version, "a layer at the start of a recomputed group")
        if not isinstance(out, Tensor):
            raise InputError(
                f"cannot recompute: expected blocks that return one tensor, got {type(out).__name__}. "
                "Disable recompute for this network."
            )
        ctx.state.end_pass()
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        leaves = ctx.state.leaves
        gradients = needed_gradients(leaves, ctx.needs_input_grad[4:])
        with torch.no_grad(), ctx.rng.replay():
            ctx.rng.restore_generators(ctx.generator_states)
            (x,) = ctx.saved_tensors
            _, x_gradient = rerun_backward(
                ctx.group, x, gradient, state=ctx.state, gradients=gradients, needs_x=ctx.needs_input_grad[2]
            )
            found = [x_gradient, *gradients_of(leaves, gradients)]
        x_gradient, *found = differentiable_once(found, [gradient, ctx.history, *leaves])
        return None, None, x_gradient, None, *found


class _Pages:
    """Memory pages for the kept inputs, apart from malloc, which could not reuse the gaps between them.

    Free pages are reused, because allocating new ones costs more than the copy.
    """

    def __init__(self) -> None:
        self.free: list[mmap.mmap] = []

    def copy_of(self, x: Tensor) -> Tensor:
        """Copy x to such pages if it is large and on the CPU, else return x."""
        if x.device.type != "cpu" or x.nbytes < _LARGE:
            return x
        like = torch.empty_like(x, device="meta")  # the strides of x, if x has no gaps
        pages = self._take(like.nbytes)
        buffer = np.frombuffer(pages, np.uint8, like.nbytes)
        weakref.finalize(buffer, self.free.append, pages)  # when the last tensor in them is freed
        return torch.from_numpy(buffer).view(x.dtype).as_strided(like.size(), like.stride()).copy_(x)

    def _take(self, size: int) -> mmap.mmap:
        """Return the smallest free pages of at least `size` bytes and less than twice that, or new ones."""
        fitting = [pages for pages in self.free if size <= len(pages) < 2 * size]
        if not fitting:
            if self.free:  # bounds the number of pages for any order of sizes
                self.free.remove(max(self.free, key=len))
            return mmap.mmap(-1, size, **_PRIVATE)
        smallest = min(fitting, key=len)
        self.free.remove(smallest)
        return smallest

    def __reduce__(self) -> tuple[type, tuple[()]]:  # a copied network starts without pages
        return _Pages, ()
