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
from typing import Any

import torch
from torch import Tensor, nn

from skipway.errors import InputError, did_you_mean
from skipway.nn.chain import Function
from skipway.nn.joins import Scale, add
from skipway.nn.reversible import Coupling
from skipway.nn.skip import Skip
from skipway.probe.block_stats import Block, Plain, batches_accuracy, blocks_of, unrolled, untouched

__all__ = ["CUTS", "Drop", "Lesion", "Several", "Shuffle", "Swap", "batches_accuracy", "lesion"]

CUTS = ("drop", "several", "swap", "shuffle")
_ADDITIONS = (add, operator.add, torch.add)


@dataclass(frozen=True)
class Drop(Plain):
    """The score without one block. `kept` is what stays: "identity", "shortcut" (a projection), or "nothing" around it
    in a plain network, where the block before is joined to the one after."""

    path: str
    stage: str
    kept: str
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
        shapes, whole = _first_look(network, score, [*blocks, *chain.from_iterable(rows)])
        judge, chance = partial(_cut_score, network, score), random.Random(seed)
        fits, left_out = _stand_ins(blocks, shapes)
        orders = list(chain.from_iterable(_alike(row, shapes) for row in rows))
        dropped, several, swapped, shuffled = [], [], [], []
        if {"drop", "several"} & set(cuts):
            dropped = [Drop(b.path, _stage(b.path), kept, judge({b.module: instead})) for b, kept, instead in fits]
        if "several" in cuts:
            several = list(_several(fits, dropped, judge, draws, chance))
        if "swap" in cuts:
            swapped = [
                Swap(a.path, b.path, _stage(a.path), judge({a.module: b.module, b.module: a.module}))
                for a, b in chain.from_iterable(map(pairwise, orders))
            ]
        if "shuffle" in cuts:
            shuffled = list(_shuffled(orders, judge, draws, chance))
    return Lesion(measure, whole, dropped, several, swapped, shuffled, left_out)


Shape = tuple[int, ...]
Fit = tuple[Block, str, nn.Module]
Judge = Callable[[Mapping[nn.Module, nn.Module]], float]


def _stage(path: str) -> str:
    """The name of the outermost layer around a block, or nothing where the block is one of the network's own layers."""
    return path.split(".")[0] if "." in path else ""


def _scored(network: nn.Module, score: Callable[[nn.Module], float]) -> float:
    with untouched(network):
        value: Any = score(network)
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if not isinstance(value, Real):
        raise InputError(f"score is to give one number for a network, not {type(value).__name__}; see batches_accuracy")
    return float(value)


def _cut_score(
    network: nn.Module, score: Callable[[nn.Module], float], instead: Mapping[nn.Module, nn.Module]
) -> float:
    with _exchanged(network, instead):
        return _scored(network, score)


@contextmanager
def _exchanged(network: nn.Module, instead: Mapping[nn.Module, nn.Module]) -> Iterator[None]:
    """Other modules in the places of some, meanwhile."""
    places = []
    for module in network.modules():
        places += [(module._modules, name, child) for name, child in module._modules.items() if child in instead]
    try:
        for children, name, child in places:
            children[name] = instead[child]  # type: ignore[index]
        yield
    finally:
        for children, name, child in places:
            children[name] = child


def _first_look(
    network: nn.Module, score: Callable[[nn.Module], float], seen: Sequence[Block]
) -> tuple[dict[nn.Module, tuple[Shape, Shape]], float]:
    """The shapes (without the batch) that go into and out of each block, and the score of the whole network."""
    shapes: dict[nn.Module, tuple[Shape, Shape]] = {}

    def look(module: nn.Module, inputs: tuple[Any, ...], out: Any) -> None:
        if inputs and isinstance(inputs[0], Tensor) and isinstance(out, Tensor):
            shapes[module] = tuple(inputs[0].shape[1:]), tuple(out.shape[1:])

    handles = [module.register_forward_hook(look) for module in {block.module for block in seen}]
    try:
        whole = _scored(network, score)
    finally:
        for handle in handles:
            handle.remove()
    if not shapes:
        raise InputError(
            "score runs none of the network's blocks; it is to run the network that it is given, not a copy"
        )
    return shapes, whole


class _Kept(nn.Module):
    """What a Skip gives without its body."""

    def __init__(self, skip: Skip):
        super().__init__()
        self.shortcut, self.after = skip.shortcut, skip.after

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, *) -> after(shortcut(x))."""
        kept = x if self.shortcut is None else self.shortcut(x)
        return kept if self.after is None else self.after(kept.clone())  # which it may change in place


class _Halves(nn.Module):
    """What a Coupling with shortcuts gives without its bodies."""

    def __init__(self, coupling: Coupling):
        super().__init__()
        assert coupling.shortcuts is not None
        self.shortcuts = coupling.shortcuts

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, *) -> (B, C', *)."""
        return torch.cat([around(half) for around, half in zip(self.shortcuts, x.chunk(2, 1), strict=True)], 1)


def _stand_ins(blocks: Sequence[Block], shapes: Mapping[nn.Module, tuple[Shape, Shape]]) -> tuple[list[Fit], list[str]]:
    """What may be dropped, with what is kept of it and what stands in for it; and why others may not."""
    fits: list[Fit] = []
    left_out = []
    for block in blocks:
        module = block.module
        if module not in shapes:
            left_out.append(f"{block.path} is not dropped: score does not run it")
        elif not block.path:
            left_out.append("the network is one block, which is not dropped; the blocks inside it are")
        elif isinstance(module, Coupling):
            plain = module.shortcuts is None
            fits.append((block, "identity" if plain else "shortcut", nn.Identity() if plain else _Halves(module)))
        elif isinstance(module, Skip):
            join = module.join.function if isinstance(module.join, Function) else module.join
            if join in _ADDITIONS or isinstance(join, Scale):
                fits.append((block, "identity" if module.shortcut is None else "shortcut", _Kept(module)))
            else:
                name = type(join).__name__ if isinstance(join, nn.Module) else getattr(join, "__name__", repr(join))
                left_out.append(f"{block.path} is not dropped: its join {name} does not add, so it needs the body")
        elif len(set(shapes[module])) == 1:
            fits.append((block, "nothing", nn.Identity()))
        else:
            before, after = shapes[module]
            left_out.append(f"{block.path} is not dropped: plain, and it leads from {before} to {after}")
    return fits, left_out


def _doubling(most: int) -> list[int]:
    """1, 2, 4, ... below `most`, and `most`."""
    return [*(2**i for i in range(most.bit_length()) if 2**i < most), most] if most else []


def _several(
    fits: Sequence[Fit], dropped: Sequence[Drop], judge: Judge, draws: int, chance: random.Random
) -> Iterator[Several]:
    """1, 2, 4, ... and all blocks dropped; of one and of all there is nothing to draw."""
    for count in _doubling(len(fits)):
        if count == 1:
            yield Several(1, [drop.score for drop in dropped])
        else:
            chosen = [chance.sample(range(len(fits)), count) for _ in range(1 if count == len(fits) else draws)]
            yield Several(count, [judge({fits[i][0].module: fits[i][2] for i in some}) for some in chosen])


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


def _alike(row: Sequence[Block], shapes: Mapping[nn.Module, tuple[Shape, Shape]]) -> list[list[Block]]:
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


def _shuffled(orders: Sequence[Sequence[Block]], judge: Judge, draws: int, chance: random.Random) -> Iterator[Shuffle]:
    """1, 2, 4, ... random exchanges of two blocks of one stage, up to as many as there are blocks."""
    pairs = []
    for which, order in enumerate(orders):
        pairs += [(which, i, j) for i, j in combinations(range(len(order)), 2)]
    for exchanges in _doubling(sum(map(len, orders))):
        for _ in range(draws):
            now = [list(range(len(order))) for order in orders]
            for which, i, j in chance.choices(pairs, k=exchanges):
                now[which][i], now[which][j] = now[which][j], now[which][i]
            wrong = sum(now[which][i] > now[which][j] for which, i, j in pairs)
            instead: dict[nn.Module, nn.Module] = {}
            for order, places in zip(orders, now, strict=True):
                instead |= {order[i].module: order[j].module for i, j in enumerate(places)}
            yield Shuffle(exchanges, wrong / len(pairs), judge(instead))
