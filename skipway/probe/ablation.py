"""Lesion: what a trained network loses when blocks are dropped, exchanged or shuffled.

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
    """The score without one block.

    remainder: what stays in its place: "identity", "shortcut" (a projection), or "nothing" in a plain network, where
        the block before is joined to the one after.
    """

    path: str
    stage: str
    remainder: Remainder
    score: float


@dataclass(frozen=True)
class Several(Plain):
    """The scores without `count` blocks, one for each draw of them."""

    count: int
    scores: list[float]


@dataclass(frozen=True)
class Swap(Plain):
    """The score with two neighbours of a stage exchanged."""

    first: str
    second: str
    stage: str
    score: float


@dataclass(frozen=True)
class Shuffle(Plain):
    """The score with blocks moved within their stages by so many random exchanges.

    distance: Kendall's, as the share of pairs of blocks in one stage that stand the other way round; 0 in order, 1
        all reversed. The rank correlation tau of Veit et al. is 1 - 2 * distance.
    """

    exchanges: int
    distance: float
    score: float


@dataclass(frozen=True)
class Lesion(Plain):
    """Scores of a network whole and cut; `left_out` says what could not be cut, a line each."""

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
    """What `network` scores without each of its blocks, without several, and with blocks in another order.

    A dropped Skip gives after(shortcut(x)), a Coupling what its halves are without their bodies; a plain block is
    taken out, where it keeps the shape. The network comes back as it was, whatever happens, and is given to `score`
    in the same random state each time.

    Args:
        network: a trained one.
        score: takes the network and gives one number; see `batches_accuracy`.
        measure: what that number is: "accuracy", "loss" or another word.
        cuts: which of these to make: "drop" (each block by itself), "several" (1, 2, 4, ... blocks at random, then all;
            each by itself is part of it), "swap" (neighbours in a stage) and "shuffle" (1, 2, 4, ... random exchanges
            within stages). A network of n blocks is scored about 2n times, and 2 * draws * log2(n) times.
        draws: of several blocks, and of orders, for each count.
        seed: of these draws.

    Raises:
        InputError: the network has no blocks, or `score` does not run them or gives no number.
    """
    unknown = [cut for cut in cuts if cut not in CUTS]
    if unknown:
        raise InputError(
            f"no cut is called {unknown[0]!r}{did_you_mean(str(unknown[0]), CUTS)}; cuts are {', '.join(CUTS)}"
        )
    if draws < 1:
        raise InputError(f"draws is a number from 1 up, not {draws}")
    blocks = blocks_of(network)
    if not blocks:
        raise InputError("lesion found no Skip, no Coupling and no row of plain blocks to cut in this network")
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
ScoreCut = Callable[[Mapping[nn.Module, nn.Module]], float]  # takes replacements of modules


@dataclass(frozen=True)
class _StandIn:
    """A module that computes what is left of a block without its body."""

    block: Block
    remainder: Remainder
    module: nn.Module


def _stage(path: str) -> str:
    """The name of the outermost layer around a block, or nothing where the block is one of the network's own layers."""
    return path.split(".")[0] if "." in path else ""


def _score(network: nn.Module, score: Callable[[nn.Module], float]) -> float:
    with untouched(network):
        value: Any = score(network)
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if not isinstance(value, Real):
        raise InputError(f"score is to give one number for a network, not {type(value).__name__}; see batches_accuracy")
    return float(value)


def _score_cut(
    network: nn.Module, score: Callable[[nn.Module], float], replacements: Mapping[nn.Module, nn.Module]
) -> float:
    with _replaced(network, replacements):
        return _score(network, score)


@contextmanager
def _replaced(network: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> Iterator[None]:
    """Put other modules in the places of some, inside the context."""
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
    """The shapes (without the batch) that go into and out of each block, and the score of the whole network."""
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
            "score runs none of the network's blocks; it is to run the network that it is given, not a copy"
        )
    return shapes, baseline


class _WithoutBody(nn.Module):
    """What a Skip gives without its body."""

    def __init__(self, skip: Skip):
        super().__init__()
        self.shortcut, self.after = skip.shortcut, skip.after

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, *) -> after(shortcut(x))."""
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return shortcut if self.after is None else self.after(shortcut.clone())  # which it may change in place


class _HalvesWithoutBodies(nn.Module):
    """What a Coupling with shortcuts gives without its bodies."""

    def __init__(self, coupling: Coupling):
        super().__init__()
        assert coupling.shortcuts is not None
        self.shortcuts = coupling.shortcuts

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, *) -> (B, C', *)."""
        return torch.cat([around(half) for around, half in zip(self.shortcuts, x.chunk(2, 1), strict=True)], 1)


def _find_stand_ins(
    blocks: Sequence[Block], shapes: Mapping[nn.Module, tuple[Shape, Shape]]
) -> tuple[list[_StandIn], list[str]]:
    """Find a stand-in for each block that may be dropped, and the reason why each of the others may not."""
    stand_ins: list[_StandIn] = []
    left_out = []
    for block in blocks:
        module = block.module
        if module not in shapes:
            left_out.append(f"{block.path} is not dropped: score does not run it")
        elif not block.path:
            left_out.append("the network is one block, which is not dropped; the blocks inside it are")
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
                left_out.append(f"{block.path} is not dropped: its join {name} does not add, so it needs the body")
        elif len(set(shapes[module])) == 1:
            stand_ins.append(_StandIn(block, "nothing", nn.Identity()))
        else:
            before, after = shapes[module]
            left_out.append(f"{block.path} is not dropped: plain, and it leads from {before} to {after}")
    return stand_ins, left_out


def _powers_of_two(limit: int) -> list[int]:
    """Return 1, 2, 4, ... below `limit`, and `limit`."""
    return [*(2**i for i in range(limit.bit_length()) if 2**i < limit), limit] if limit else []


def _drop_several(
    stand_ins: Sequence[_StandIn], dropped: Sequence[Drop], score_cut: ScoreCut, *, draws: int, rng: random.Random
) -> Iterator[Several]:
    """Drop 1, 2, 4, ... and all blocks; of one and of all there is nothing to draw."""
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
    """Blocks by the nn.Sequential that they are layers of; where a block is alone in a numbered one, that is meant."""
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
    """The longest runs of neighbours in a row that keep the shape, of two or more."""
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
    """Make 1, 2, 4, ... random exchanges of two blocks of one stage, up to as many as there are blocks."""
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
