"""Recomputation: a network keeps the inputs of groups of blocks, and computes what is inside again going backward.

Memory for time: of n blocks in groups of k, a training step keeps n / k inputs and what k blocks need, not what n
need, and computes each block forward twice.
Source: Chen et al. 2016, arXiv:1604.06174.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from skipway.errors import InputError
from skipway.reversible import Coupling, Reversible, at_rest
from skipway.skip import Chain, Skip

__all__ = ["recompute"]

AnyModule = TypeVar("AnyModule", bound=nn.Module)
_INSIDE = 3  # what a block keeps for the way back, over what goes into it: between 2 (basic) and 4 (bottleneck)


def recompute(network: AnyModule, every: int | str = "auto") -> AnyModule:
    """Let `network` keep less while training: only what goes into each group of blocks; `network` itself, changed.

    What is inside a group is computed again on the way back. Gradients, running statistics and random choices are
    those without it, to the last bit; outputs without gradients are computed as ever.

    Args:
        every: blocks in a group; "stages" for all of each stage; "auto" for about as many as need the least memory,
            the square root of a third of the stage's blocks; "none" to keep everything again.

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
    for row in rows:
        count = every if isinstance(every, int) else len(row) if every == "stages" else (len(row) / _INSIDE) ** 0.5
        row.runner = None if every == "none" else partial(_in_groups, every=max(1, round(count)))
    return network


def _rows_of_blocks(root: nn.Module) -> Iterator[Chain]:
    """The outermost Chains whose layers are blocks: one of them a Skip, or all of them Chains; none is reversible."""
    inside = list(root.children())
    if any(isinstance(child, Reversible | Coupling) for child in inside):
        return
    blocks = [isinstance(child, Chain | Skip) for child in inside]
    if isinstance(root, Chain) and blocks and (all(blocks) or any(isinstance(child, Skip) for child in inside)):
        yield root
        return
    for child in root.children():
        yield from _rows_of_blocks(child)


def _in_groups(layers: Sequence[nn.Module], x: Any, *, every: int) -> Any:
    """What `layers` make of x one after the other, with nothing kept inside each group of `every` of them."""
    if not torch.is_grad_enabled():
        return _run(layers, x)
    for begin in range(0, len(layers), every):
        group = layers[begin : begin + every]
        x = checkpoint(_run, group, x, use_reentrant=False, context_fn=partial(_first_and_second, group))
    return x


def _run(group: Sequence[nn.Module], x: Any) -> Any:
    for layer in group:
        x = layer(x)
    return x


def _first_and_second(group: Sequence[nn.Module]) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """What the two passes run in: only the first may change statistics."""
    return nullcontext(), at_rest(group)
