"""Recomputation: a network keeps the inputs of groups of blocks, and computes what is inside again going backward.

Memory for time: of n blocks in groups of k, a training step keeps n / k inputs and what k blocks need, not what n
need, and computes each block forward twice.
Source: Chen et al. 2016, arXiv:1604.06174.
"""

import mmap
import weakref
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable

from skipway.errors import InputError
from skipway.kernels.layer_dispatch import call_layer, run_layers
from skipway.nn.chain import Chain
from skipway.nn.reversible import Coupling, Reversible
from skipway.nn.rng_replay import RngSnapshot, rerun_backward
from skipway.nn.skip import Skip

__all__ = ["recompute"]

AnyModule = TypeVar("AnyModule", bound=nn.Module)
_LARGE = 2**20  # bytes
# A process that forks must not share what it keeps with its child; elsewhere than on Unix there is no such thing.
_PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
_INSIDE = 3  # what a block keeps for the way back, over what goes into it: between 2 (basic) and 4 (bottleneck)


def recompute(network: AnyModule, every: int | str = "auto") -> AnyModule:
    """Let `network` keep less while training: only what goes into each group of blocks; `network` itself, changed.

    What is inside a group is computed again on the way back. Gradients, running statistics and random choices are
    those without it, to the last bit; outputs without gradients are computed as ever. Second derivatives are refused
    by autograd.

    Args:
        every: blocks in a group; "stages" for all of each stage; "auto" for about as many as need the least memory,
            the square root of a third of the stage's blocks, but none at the end of the network, where what is kept is
            gone again before it could be in the way; "none" to keep everything again.

    Networks that are traced (torch.compile, torch.export) are left to what traces them. On Linux set
    GLIBC_TUNABLES=glibc.malloc.tcache_count=0 before Python starts, as `skipway train --recompute` does: glibc then
    finds again what is freed, which saves several times as much.

    Raises:
        InputError: `every` is none of these, or the network has no row of blocks that keep what is inside.
    """
    if every not in ("auto", "stages", "none") and (not isinstance(every, int) or isinstance(every, bool) or every < 1):
        raise InputError(f'recompute takes a number of blocks from 1 up, "stages", "auto" or "none", not {every!r}')
    rows = list(_rows_of_blocks(network))
    if not rows and every != "none":
        raise InputError(
            "recompute found no row of blocks that keep what is inside, as a Chain with a Skip in it does; wrap the "
            "blocks in skipway.Chain, unless they are reversible"
        )
    counts = [every if isinstance(every, int) else _group_of(len(row), every) for row in rows]
    # Going backward, the end is done with before the first group is computed again, which is the largest: it may
    # keep as much as that needs. From stage to stage blocks need half.
    spared = counts[0] * 2 ** (len(rows) - 1) if every == "auto" else 0
    for row, count in zip(rows, counts, strict=True):
        last = spared if row is rows[-1] else 0
        row.forward_impl = None if every == "none" else partial(_in_groups, every=count, pages=_Pages(), spared=last)
    return network


def _group_of(blocks: int, every: str) -> int:
    return blocks if every == "stages" else max(1, round((blocks / _INSIDE) ** 0.5))


def _rows_of_blocks(root: nn.Module) -> Iterator[Chain]:
    """The outermost Chains whose layers are blocks: one of them a Skip, or all of them Chains; none is reversible."""
    children = list(root.children())
    if any(isinstance(child, Reversible | Coupling) for child in children):
        return
    blocks = [isinstance(child, Chain | Skip) for child in children]
    if isinstance(root, Chain) and blocks and (all(blocks) or any(isinstance(child, Skip) for child in children)):
        yield root
        return
    for child in children:
        yield from _rows_of_blocks(child)


def _in_groups(layers: Sequence[nn.Module], x: Any, *, every: int, pages: "_Pages", spared: int = 0) -> Any:
    """Run `layers` with nothing kept inside each group of `every` of them, but for the last `spared`."""
    end = max(0, len(layers) - spared)
    for begin in range(0, end, every):
        group = layers[begin : min(begin + every, end)]
        # What is traced, or is not a single tensor, is left to autograd.
        single = torch.is_grad_enabled() and isinstance(x, Tensor) and not x.is_meta
        if single and not torch.compiler.is_compiling():
            parameters = (p for p in nn.ModuleList(group).parameters() if p.requires_grad)
            x = _Group.apply(group, pages, x, *parameters)
        else:
            x = run_layers(group, x, call_layer)
    return run_layers(layers[end:], x, call_layer)


class _Group(Function):
    """A group's output; the parameters are named so that autograd asks for their gradients."""

    @staticmethod
    def forward(ctx: Any, group: Sequence[nn.Module], pages: "_Pages", x: Tensor, *parameters: nn.Parameter) -> Any:
        ctx.group, ctx.parameters, ctx.rng = group, parameters, RngSnapshot(x.device)
        ctx.generator_states = ctx.rng.generator_states()
        ctx.save_for_backward(pages.copy_of(x))
        with ctx.rng.autocast_context():
            out = run_layers(group, x.detach(), call_layer)
        if not isinstance(out, Tensor):
            raise InputError(
                f"recompute takes blocks that give one tensor, not {type(out).__name__}; leave it out for this network"
            )
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        gradients: dict[nn.Parameter, Tensor] = {}
        with ctx.rng.replay():
            ctx.rng.restore_generators(ctx.generator_states)
            (x,) = ctx.saved_tensors
            _, x_gradient = rerun_backward(ctx.group, x, gradient, parameters=ctx.parameters, gradients=gradients)
        return None, None, x_gradient, *(gradients.get(p) for p in ctx.parameters)


class _Pages:
    """Pages of their own for what groups keep: among what they free, malloc could not use the gaps again.

    Those that are done with are taken again, for fresh ones cost more than the copy.
    """

    def __init__(self) -> None:
        self.free: list[mmap.mmap] = []

    def copy_of(self, x: Tensor) -> Tensor:
        """A copy of x in such pages where it is large and on the CPU, else x."""
        if x.device.type != "cpu" or x.nbytes < _LARGE:
            return x
        like = torch.empty_like(x, device="meta")  # its strides, those of x where x has no gaps
        pages = self._take(like.nbytes)
        numbers = np.frombuffer(pages, np.uint8, like.nbytes)
        weakref.finalize(numbers, self.free.append, pages)  # when the last tensor in them is gone
        return torch.from_numpy(numbers).view(x.dtype).as_strided(like.size(), like.stride()).copy_(x)

    def _take(self, size: int) -> mmap.mmap:
        """The smallest free pages that hold `size` bytes; new ones where there are none, or twice as many at least."""
        fitting = [pages for pages in self.free if size <= len(pages) < 2 * size]
        if not fitting:
            if self.free:  # so that there are never more of them than are needed, whatever sizes come
                self.free.remove(max(self.free, key=len))
            return mmap.mmap(-1, size, **_PRIVATE)
        smallest = min(fitting, key=len)
        self.free.remove(smallest)
        return smallest

    def __reduce__(self) -> tuple[type, tuple[()]]:  # a copied network has its own
        return _Pages, ()
