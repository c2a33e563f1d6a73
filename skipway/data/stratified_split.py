"""Stratified splits of samples into parts, in which samples with equal content or of one group stay together.

Samples that must stay together form a unit. Units with one content are dealt in the order of their strata, so that the
parts differ by at most one. Larger units are dealt by the squared deviation of each stratum's shares from those wanted:
the largest unit first, each to the part that it fits best, and then single units move as long as that helps.

Shapes: N samples, U units, S strata, P parts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["MAX_HELD_OUT", "Units", "fold_numbers", "holdout_mask", "units_of"]

MAX_HELD_OUT = 5000  # the 95% interval of an accuracy of 97% is then within half a point
_SWEEPS = 4  # over all units; the first two bring most of the gain


@dataclass(frozen=True)
class Units:
    """Samples that stay together in one part of a split.

    Attributes:
        of: (N,) unit of each sample, numbered by first appearance.
        unit_of_content: (D,) unit of each of the D different contents.
        stratum_of_content: (D,) stratum of the first sample of each content, from 0 without gaps.
    """

    of: np.ndarray
    unit_of_content: np.ndarray
    stratum_of_content: np.ndarray

    @property
    def are_single(self) -> bool:
        """True if every unit has one content only."""
        return len(self) == len(self.unit_of_content)

    def __len__(self) -> int:
        """Return the number of units U."""
        return int(self.of.max(initial=-1)) + 1

    def counts(self) -> np.ndarray:
        """Return the numbers (U, S) of different contents of each unit in each stratum."""
        counts = np.zeros((len(self), int(self.stratum_of_content.max()) + 1), np.int64)
        np.add.at(counts, (self.unit_of_content, self.stratum_of_content), 1)
        return counts


def units_of(strata: np.ndarray, digests: Sequence[str], groups: Sequence[str] | None = None) -> Units:
    """Join the samples with equal digests, and those of a group, to units.

    Args:
        strata: (N,) integers.
        digests: N identifiers of the samples' contents.
        groups: N names of groups; None if there are none. Samples without a group have the name "".

    Returns:
        The units. Each content counts once, in the stratum of its first sample.
    """
    contents = _numbered(digests)
    of = contents if groups is None else _joined(contents, groups)
    _, first = np.unique(contents, return_index=True)
    _, stratum = np.unique(strata[first], return_inverse=True)
    return Units(of, of[first], stratum)


def holdout_mask(
    train: np.ndarray,
    labels: np.ndarray,
    digests: Sequence[str],
    *,
    fraction: float,
    seed: int,
    groups: Sequence[str] | None = None,
) -> np.ndarray:
    """Select a stratified part of the training samples for validation.

    Duplicates and groups are held out together. A stratum with 2 or more units is in both splits if possible, one with
    a single unit is trained on.

    Args:
        train: indices of the training samples.
        labels: (N,) strata of all samples.
        digests: N digests of the samples' contents.
        fraction: share to hold out.
        seed: seed of the selection.
        groups: N names of groups, or None.

    Returns:
        (len(train),) booleans, True for validation.
    """
    chosen = None if groups is None else [groups[i] for i in train]
    units = units_of(labels[train], [digests[i] for i in train], chosen)
    total = len(units.unit_of_content)
    num_held = min(round(total * fraction), MAX_HELD_OUT)
    if units.are_single:
        counts = np.bincount(units.stratum_of_content)
        rank = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)  # position within its stratum
        held = np.zeros(total, bool)
        held[_by_stratum(units, seed)[rank < np.repeat(_shares(counts, num_held), counts)]] = True
        return held[units.of]
    share = min(max(num_held / total, 1 / total), 1 - 1 / total)
    return (_deal(units.counts(), np.array([1 - share, share]), seed, keeps_lone=True) == 1)[units.of]


def fold_numbers(
    labels: np.ndarray, digests: Sequence[str], count: int, seed: int, groups: Sequence[str] | None = None
) -> np.ndarray:
    """Assign each sample to a fold, stratified, with duplicates and groups in one fold.

    Without groups, fold sizes differ by at most 1 content, and so do the counts of each stratum.

    Args:
        labels: (N,) stratum of each sample.
        digests: N identifiers of the samples' contents.
        count: number of folds.
        seed: seed of the shuffle before samples are assigned.
        groups: N names of groups, or None.

    Returns:
        (N,) fold numbers from 1 to `count`.
    """
    units = units_of(labels, digests, groups)
    if units.are_single:
        numbers = np.empty(len(units), np.int64)
        numbers[_by_stratum(units, seed)] = 1 + np.arange(len(units)) % count
        return numbers[units.of]
    return 1 + _deal(units.counts(), np.full(count, 1 / count), seed)[units.of]


def _numbered(names: Sequence[str]) -> np.ndarray:
    """Return (N,) numbers of names by first appearance."""
    number_of: dict[str, int] = {}
    return np.array([number_of.setdefault(name, len(number_of)) for name in names], np.int64)


def _joined(contents: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """Return (N,) units of samples that are connected by contents or by groups."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    named = [i for i, name in enumerate(groups) if name]
    offset = int(contents.max()) + 1
    nodes = offset + _numbered([groups[i] for i in named])
    size = offset + len(named)
    graph = coo_array((np.ones(len(named), np.int8), (contents[named], nodes)), shape=(size, size))
    _, component = connected_components(graph, directed=False)
    return _numbered(component[contents].tolist())


def _by_stratum(units: Units, seed: int) -> np.ndarray:
    """Return units with one content in random order within each stratum."""
    drawn = np.random.Generator(np.random.PCG64(seed)).permutation(len(units))
    return drawn[np.argsort(units.stratum_of_content[drawn], kind="stable")]


def _shares(counts: np.ndarray, total: int) -> np.ndarray:
    """Return the number of units to hold out per stratum: its rounded share, at least 1, never all.

    >>> _shares(np.array([70, 30, 2]), 10).tolist()
    [6, 3, 1]
    """
    exact = counts * (total / counts.sum())
    shares = np.clip(np.floor(exact).astype(np.int64), 1, counts - 1)
    rounded_down = np.flatnonzero((shares < exact) & (shares < counts - 1))
    largest_first = rounded_down[np.argsort(shares[rounded_down] - exact[rounded_down], kind="stable")]
    shares[largest_first[: max(0, total - int(shares.sum()))]] += 1
    return shares


def _deal(counts: np.ndarray, shares: np.ndarray, seed: int, keeps_lone: bool = False) -> np.ndarray:
    """Assign units (U, S) to parts (U,) with the wanted shares (P,).

    If `keeps_lone` is set, a unit that is the only one of a stratum goes to part 0.
    """
    lone = (counts > 0).sum(axis=0) == 1
    pinned = np.asarray((counts[:, lone] > 0).any(axis=1) & keeps_lone)
    amounts = np.column_stack([counts, counts.sum(axis=1)])  # the size of a part counts as one more stratum
    amounts = amounts / amounts.sum(axis=0)
    drawn = np.random.Generator(np.random.PCG64(seed)).permutation(len(counts))
    order = drawn[np.argsort(-amounts[drawn, -1], kind="stable")]
    free = order[~pinned[order]]
    parts = np.zeros(len(counts), np.int64)
    excess = -np.repeat(shares[:, None], amounts.shape[1], axis=1)  # the sums of each part above those wanted
    excess[0] += amounts[pinned].sum(axis=0)
    for unit in free:
        parts[unit] = _costs(excess, amounts[unit], shares).argmin()
        excess[parts[unit]] += amounts[unit]
    for _ in range(_SWEEPS):
        if not _move_units(parts, amounts, excess, shares, free):
            break
    _fill_parts(parts, amounts, excess, free)
    _spread_strata(parts, amounts, excess, shares, free)
    return parts


def _costs(excess: np.ndarray, amount: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return (P,) changes of the sum of squared deviations, relative to the shares, by adding a unit to each part."""
    return ((2 * excess + amount) * amount).sum(axis=1) / shares


def _move_units(
    parts: np.ndarray, amounts: np.ndarray, excess: np.ndarray, shares: np.ndarray, order: np.ndarray
) -> bool:
    """Move each unit to the part that it fits best, in place; return True if any has moved."""
    has_moved = False
    for unit in order:
        here = parts[unit]
        excess[here] -= amounts[unit]
        costs = _costs(excess, amounts[unit], shares)
        best = int(costs.argmin())
        if costs[best] < costs[here] - 1e-12:
            parts[unit], has_moved = best, True
        excess[parts[unit]] += amounts[unit]
    return has_moved


def _fill_parts(parts: np.ndarray, amounts: np.ndarray, excess: np.ndarray, free: np.ndarray) -> None:
    """Move the smallest unit of the part with most free units into each empty part, in place."""
    num_parts = len(excess)
    for part in np.flatnonzero(np.bincount(parts, minlength=num_parts) == 0):
        source = np.bincount(parts[free], minlength=num_parts).argmax()
        units = free[parts[free] == source]
        if len(units) and (parts == source).sum() > 1:
            _move(parts, excess, amounts, int(units[amounts[units, -1].argmin()]), int(part))


def _spread_strata(
    parts: np.ndarray, amounts: np.ndarray, excess: np.ndarray, shares: np.ndarray, free: np.ndarray
) -> None:
    """Move units, in place, until each stratum of 2 or more units is in several parts.

    A move that would put another stratum into one part only is left out.
    """
    homes = np.zeros(excess.shape, np.int64)  # units of each part with each stratum
    np.add.at(homes, parts, amounts > 0)
    for stratum in np.argsort(homes.sum(axis=0), kind="stable"):
        if homes[:, stratum].sum() < 2 or (homes[:, stratum] > 0).sum() > 1:
            continue
        moves = []
        for unit in free[amounts[free, stratum] > 0]:
            costs = _costs(excess, amounts[unit], shares)
            moves += [(costs[part], unit, part) for part in _harmless_parts(homes, amounts[unit] > 0, parts[unit])]
        if moves:
            _, unit, part = min(moves)
            homes[parts[unit]] -= amounts[unit] > 0
            homes[part] += amounts[unit] > 0
            _move(parts, excess, amounts, unit, part)


def _harmless_parts(homes: np.ndarray, present: np.ndarray, here: int) -> list[int]:
    """Return the parts to which a unit with the strata `present` can move without leaving one of them in one part."""
    harmless = []
    for part in range(len(homes)):
        after = homes[:, present].copy()
        after[here] -= 1
        after[part] += 1
        is_in_one = ((after > 0).sum(axis=0) == 1) & (after.sum(axis=0) > 1)
        if part != here and not is_in_one.any():
            harmless.append(part)
    return harmless


def _move(parts: np.ndarray, excess: np.ndarray, amounts: np.ndarray, unit: int, part: int) -> None:
    excess[parts[unit]] -= amounts[unit]
    excess[part] += amounts[unit]
    parts[unit] = part
