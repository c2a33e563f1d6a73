"""Ablation: score a trained model after dropping, swapping or shuffling its blocks.

Source: Veit et al. 2016, arXiv:1605.06431.
"""

import operator
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, combinations, pairwise
from numbers import Real
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from skipway.errors import InputError, did_you_mean
from skipway.nn.chain import Function
from skipway.nn.joins import Scale, add
from skipway.nn.reversible import Coupling
from skipway.nn.skip import Skip
from skipway.probe.block_stats import Block, Plain, batches_accuracy, blocks_of, unrolled, untouched

__all__ = ["CUTS", "Drop", "Lesion", "Several", "Shuffle", "Swap", "batches_accuracy", "lesion"]

Cut = Literal["drop", "several", "swap", "shuffle"]
Remainder = Literal["identity", "shortcut", "nothing"]
CUTS: tuple[Cut, ...] = get_args(Cut)
_ADDITIONS = (add, operator.add, torch.add)


@dataclass(frozen=True)
class Drop(Plain):
    """Score without one block.

    Attributes:
        path: path of the block.
        stage: first part of the path, or "" for a top-level block.
        remainder: replacement of the block: "identity", "shortcut" (a projection or another module), or "nothing" in a
            plain network, where the next block follows the previous one.
        score: score without the block.
    """

    path: str
    stage: str
    remainder: Remainder
    score: float


@dataclass(frozen=True)
class Several(Plain):
    """Scores without `count` blocks, one for each random sample of blocks."""

    count: int
    scores: list[float]


@dataclass(frozen=True)
class Swap(Plain):
    """Score after swapping two adjacent blocks of a stage."""

    first: str
    second: str
    stage: str
    score: float


@dataclass(frozen=True)
class Shuffle(Plain):
    """Score after random swaps of blocks within their stages.

    Attributes:
        exchanges: number of random swaps.
        distance: normalized Kendall tau distance: the share of block pairs of one stage in reversed order, from 0 (in
            order) to 1 (fully reversed). The rank correlation tau of Veit et al. is 1 - 2 * distance.
        score: score in this order.
    """

    exchanges: int
    distance: float
    score: float


@dataclass(frozen=True)
class Lesion(Plain):
    """Scores of a network with and without ablations.

    Attributes:
        measure: name of the metric.
        score: score of the unmodified network.
        dropped, several, swapped, shuffled: scores of each kind of ablation.
        left_out: one message for each block that was not dropped, with the reason.
    """

    measure: str
    score: float
    dropped: list[Drop] = field(default_factory=list)
    several: list[Several] = field(default_factory=list)
    swapped: list[Swap] = field(default_factory=list)
    shuffled: list[Shuffle] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def lesion(
    network: nn.Module,
    score: Callable[[nn.Module], float],
    *,
    measure: str = "accuracy",
    cuts: Sequence[str] = CUTS,
    draws: int = 3,
    seed: int = 0,
) -> Lesion:
    """Run an ablation study: score `network` with blocks dropped, swapped or shuffled.

    A dropped Skip computes after(shortcut(x)). A dropped Coupling passes its halves on without their bodies. A plain
    block is removed if it preserves the shape. The network is restored afterwards, also after an error. Each call of
    `score` starts from the same random state.

    Args:
        network: trained model.
        score: function that takes the network and returns one number, such as `batches_accuracy(x, y)`.
        measure: name of that number: "accuracy", "loss" or another metric.
        cuts: ablations to run: "drop" (each block alone), "several" (1, 2, 4, ... random blocks, then all; includes
            each block alone), "swap" (adjacent blocks of a stage) and "shuffle" (1, 2, 4, ... random swaps within
            stages). A network of n blocks is scored about 2n + 2 * draws * log2(n) times.
        draws: random samples for each number of blocks and of swaps.
        seed: seed of these samples.

    Returns:
        The scores, as a `Lesion`.

    Raises:
        InputError: an argument is invalid, the network has no blocks, or `score` does not run the network or does not
            return a number.

    Example:
        >>> network = nn.Sequential(Skip(nn.Linear(4, 4)), Skip(nn.Linear(4, 4)), nn.Linear(4, 2))
        >>> x, y = torch.randn(8, 4), torch.randint(2, (8,))
        >>> result = lesion(network, batches_accuracy(x, y), cuts=["drop"])
        >>> [drop.path for drop in result.dropped]
        ['0', '1']
    """
    unknown = [cut for cut in cuts if cut not in CUTS]
    if unknown:
        raise InputError(
            f"invalid cuts: expected some of {', '.join(CUTS)}, got {unknown[0]!r}"
            f"{did_you_mean(str(unknown[0]), CUTS)}. Choose from this list."
        )
    if draws < 1:
        raise InputError(f"invalid draws: expected an integer of at least 1, got {draws}. Pass such a number.")
    blocks = blocks_of(network)
    if not blocks:
        raise InputError(
            "cannot run the ablation: expected a Skip, a Coupling or a sequence of plain blocks, got a network without "
            "any. Build the network from sw.Skip blocks."
        )
    with untouched(network), unrolled(network):
        rows = _rows(network, blocks)
        shapes, baseline = _score_whole(network, score, [*blocks, *chain.from_iterable(rows)])
        score_cut, rng = partial(_score_cut, network, score), random.Random(seed)
        stand_ins, left_out = _find_stand_ins(blocks, shapes)
        runs = list(chain.from_iterable(_runs_of_one_shape(row, shapes) for row in rows))
        dropped: list[Drop] = []
        several, swapped, shuffled = [], [], []
        if {"drop", "several"} & set(cuts):
            for stand_in in stand_ins:
                path, value = stand_in.block.path, score_cut({stand_in.block.module: stand_in.module})
                dropped.append(Drop(path, _stage(path), stand_in.remainder, value))
        if "several" in cuts:
            several = list(_drop_several(stand_ins, dropped, score_cut, draws=draws, rng=rng))
        if "swap" in cuts:
            swapped = [
                Swap(a.path, b.path, _stage(a.path), score_cut({a.module: b.module, b.module: a.module}))
                for a, b in chain.from_iterable(map(pairwise, runs))
            ]
        if "shuffle" in cuts:
            shuffled = list(_shuffle(runs, score_cut, draws=draws, rng=rng))
    return Lesion(
        measure=measure,
        score=baseline,
        dropped=dropped,
        several=several,
        swapped=swapped,
        shuffled=shuffled,
        left_out=left_out,
    )


Shape = tuple[int, ...]
ScoreCut = Callable[[Mapping[nn.Module, nn.Module]], float]  # from {module: replacement} to a score


@dataclass(frozen=True)
class _StandIn:
    """Module that replaces a block and computes it without its body."""

    block: Block
    remainder: Remainder
    module: nn.Module


def _stage(path: str) -> str:
    """Return the first part of a block's path, or "" for a top-level block."""
    return path.split(".")[0] if "." in path else ""


def _score(network: nn.Module, score: Callable[[nn.Module], float]) -> float:
    with untouched(network):
        value: Any = score(network)
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if not isinstance(value, Real):
        raise InputError(
            f"invalid score: expected a function that returns one number, got {type(value).__name__}. Use "
            "batches_accuracy(x, y), or return a float."
        )
    return float(value)


def _score_cut(
    network: nn.Module, score: Callable[[nn.Module], float], replacements: Mapping[nn.Module, nn.Module]
) -> float:
    with _replaced(network, replacements):
        return _score(network, score)


@contextmanager
def _replaced(network: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> Iterator[None]:
    """Replace modules of `network` inside the context."""
    places = []
    for module in network.modules():
        places += [(module._modules, name, child) for name, child in module._modules.items() if child in replacements]
    try:
        for children, name, child in places:
            children[name] = replacements[child]  # type: ignore[index]
        yield
    finally:
        for children, name, child in places:
            children[name] = child


def _score_whole(
    network: nn.Module, score: Callable[[nn.Module], float], blocks: Sequence[Block]
) -> tuple[dict[nn.Module, tuple[Shape, Shape]], float]:
    """Return each block's input and output shape, without the batch axis, and the score of the unmodified network."""
    shapes: dict[nn.Module, tuple[Shape, Shape]] = {}

    def record(module: nn.Module, inputs: tuple[Any, ...], out: Any) -> None:
        if inputs and isinstance(inputs[0], Tensor) and isinstance(out, Tensor):
            shapes[module] = tuple(inputs[0].shape[1:]), tuple(out.shape[1:])

    handles = [module.register_forward_hook(record) for module in {block.module for block in blocks}]
    try:
        baseline = _score(network, score)
    finally:
        for handle in handles:
            handle.remove()
    if not shapes:
        raise InputError(
            "invalid score: expected a function that runs the network passed to it, got one that runs none of its "
            "blocks. Call the argument, not a copy of the network."
        )
    return shapes, baseline


class _WithoutBody(nn.Module):
    """Compute a Skip without its body."""

    def __init__(self, skip: Skip):
        super().__init__()
        self.shortcut, self.after = skip.shortcut, skip.after

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, C, *) to after(shortcut(x))."""
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return shortcut if self.after is None else self.after(shortcut.clone())  # `after` may work in place


class _HalvesWithoutBodies(nn.Module):
    """Compute a Coupling that has shortcuts, without its bodies."""

    def __init__(self, coupling: Coupling):
        super().__init__()
        assert coupling.shortcuts is not None
        self.shortcuts, self.axis_of = coupling.shortcuts, coupling.axis_of

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, C, *) to (B, C', *)."""
        axis = self.axis_of(x)
        return torch.cat([around(half) for around, half in zip(self.shortcuts, x.chunk(2, axis), strict=True)], axis)


def _find_stand_ins(
    blocks: Sequence[Block], shapes: Mapping[nn.Module, tuple[Shape, Shape]]
) -> tuple[list[_StandIn], list[str]]:
    """Return a replacement for each block that can be dropped, and a message for each of the others."""
    stand_ins: list[_StandIn] = []
    left_out = []
    for block in blocks:
        module = block.module
        if module not in shapes:
            left_out.append(f"{block.path} was not dropped: score does not run it")
        elif not block.path:
            left_out.append("the network itself is a block and was not dropped; the blocks inside it were")
        elif isinstance(module, Coupling):
            if module.shortcuts is None:
                stand_ins.append(_StandIn(block, "identity", nn.Identity()))
            else:
                stand_ins.append(_StandIn(block, "shortcut", _HalvesWithoutBodies(module)))
        elif isinstance(module, Skip):
            join = module.join.function if isinstance(module.join, Function) else module.join
            if join in _ADDITIONS or isinstance(join, Scale):
                remainder: Remainder = "identity" if module.shortcut is None else "shortcut"
                stand_ins.append(_StandIn(block, remainder, _WithoutBody(module)))
            else:
                name = type(join).__name__ if isinstance(join, nn.Module) else getattr(join, "__name__", repr(join))
                left_out.append(f"{block.path} was not dropped: its join {name} is no addition and needs the body")
        elif len(set(shapes[module])) == 1:
            stand_ins.append(_StandIn(block, "nothing", nn.Identity()))
        else:
            before, after = shapes[module]
            left_out.append(f"{block.path} was not dropped: a plain block that maps {before} to {after}")
    return stand_ins, left_out


def _powers_of_two(limit: int) -> list[int]:
    """Return 1, 2, 4, ... below `limit`, and `limit`."""
    return [*(2**i for i in range(limit.bit_length()) if 2**i < limit), limit] if limit else []


def _drop_several(
    stand_ins: Sequence[_StandIn], dropped: Sequence[Drop], score_cut: ScoreCut, *, draws: int, rng: random.Random
) -> Iterator[Several]:
    """Drop 1, 2, 4, ... random blocks, then all; one and all need no random samples."""
    total = len(stand_ins)
    for count in _powers_of_two(total):
        if count == 1:
            yield Several(1, [drop.score for drop in dropped])
            continue
        scores = []
        samples = [rng.sample(range(total), count) for _ in range(1 if count == total else draws)]
        for sample in samples:
            scores.append(score_cut({stand_ins[i].block.module: stand_ins[i].module for i in sample}))
        yield Several(count, scores)


def _rows(network: nn.Module, blocks: Sequence[Block]) -> list[list[Block]]:
    """Group blocks by their nn.Sequential; an indexed Sequential with a single block represents that block."""
    modules = dict(network.named_modules())
    rows: dict[str, list[Block]] = {}
    for block in blocks:
        path = block.path
        while True:
            around, _, _ = path.rpartition(".")
            lone = sum(b.path.startswith(f"{around}.") for b in blocks) == 1
            if not (lone and around.rpartition(".")[2].isdigit() and isinstance(modules[around], nn.Sequential)):
                break
            path = around
        if path and isinstance(modules[around], nn.Sequential):
            rows.setdefault(around, []).append(Block(path, modules[path]))
    return list(rows.values())


def _runs_of_one_shape(row: Sequence[Block], shapes: Mapping[nn.Module, tuple[Shape, Shape]]) -> list[list[Block]]:
    """Return the longest runs of two or more adjacent blocks that preserve the shape."""
    runs: list[list[Block]] = [[]]
    for unit in row:
        before = runs[-1][-1] if runs[-1] else None
        into, out = shapes.get(unit.module, ((), (0,)))
        if into != out:
            runs.append([])
        elif before is None or shapes[before.module][1] == into:
            runs[-1].append(unit)
        else:
            runs.append([unit])
    return [run for run in runs if len(run) > 1]


def _shuffle(
    runs: Sequence[Sequence[Block]], score_cut: ScoreCut, *, draws: int, rng: random.Random
) -> Iterator[Shuffle]:
    """Make 1, 2, 4, ... random swaps within stages, up to the number of blocks."""
    pairs = []
    for which, run in enumerate(runs):
        pairs += [(which, i, j) for i, j in combinations(range(len(run)), 2)]
    for exchanges in _powers_of_two(sum(map(len, runs))):
        for _ in range(draws):
            orders = [list(range(len(run))) for run in runs]
            for which, i, j in rng.choices(pairs, k=exchanges):
                orders[which][i], orders[which][j] = orders[which][j], orders[which][i]
            inversions = sum(orders[which][i] > orders[which][j] for which, i, j in pairs)
            replacements: dict[nn.Module, nn.Module] = {}
            for run, order in zip(runs, orders, strict=True):
                replacements |= {run[i].module: run[j].module for i, j in enumerate(order)}
            yield Shuffle(exchanges, inversions / len(pairs), score_cut(replacements))
