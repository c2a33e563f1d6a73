"""Verdicts: sentences of a report that its numbers allow, such as overfitting, chance level or too few epochs.

None follows from a fixed gap alone. A difference between splits has to exceed the sampling error of both, a change over
the epochs the jitter of the curve and the sampling error of the validation metric; see `utils.uncertainty`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from skipway.report.run_reader import number
from skipway.utils.uncertainty import (
    Z95,
    difference_floor,
    exceeds_share,
    jitter,
    r2_interval,
    share_noise,
    wilson_interval,
)

__all__ = ["majority", "percent", "verdicts"]

_MATERIAL_GAP = 0.05  # between training and validation: a smaller one is normal, however certain
_MATERIAL_GAIN = 0.003  # of the metric in the last fifth of the epochs
_MATERIAL_RISE = 1.2  # of the validation loss over its lowest value
_MATERIAL_WAIT = 0.25  # share of the time
_DISCORDANT = 4  # samples that have to change for the better before a sign test sees it (2 standard deviations)
_MAX_SENTENCES = 3


def verdicts(facts: dict[str, Any]) -> list[str]:
    """Put the numbers into words, the most important first; at most three sentences, all of them counted."""
    history, best = facts["history"], facts["best"]
    if not history:
        return ["No epoch was finished, so there is nothing to judge yet."]
    regression = bool(facts.get("regression"))
    metric = "r2" if regression else "accuracy"
    count = int(number(facts["counts"].get("val")) if facts["counts"].get("val") else 0)
    # A head that was fitted first has another loss, without label smoothing, and is no point of the curve after it.
    trained = history[1:] if len(history) > 1 and history[0].get("lr") == 0 else history
    sentences = [
        *_not_finite(history),
        *(_no_better_than_the_mean(best, count) if regression else _chance_level(facts, best, count)),
        *_overfitting(facts, best, metric, count),
        *([] if regression else _rising_loss(trained, count)),
        *_trend(trained, best, metric, count),
        *_waiting(history),
    ]
    return (sentences or _nothing_notable(history, best, metric, count))[:_MAX_SENTENCES]


def _not_finite(history: Sequence[Mapping[str, float]]) -> list[str]:
    broken = [row["epoch"] for row in history if "train_loss" in row and not math.isfinite(row["train_loss"])]
    if not broken:
        return []
    return [f"The training loss was not finite in epoch {broken[0]:g}: a lower learning rate usually mends this."]


def _chance_level(facts: Mapping[str, Any], best: Mapping[str, float], count: int) -> list[str]:
    """Say that the accuracy may be that of a constant answer: its interval reaches the share of the largest class."""
    accuracy = best.get("val_accuracy", math.nan)
    name, share = majority(facts["classes"])
    if not count or not share or not math.isfinite(accuracy) or exceeds_share(accuracy, count, share):
        return []
    return [f"This is not clearly better than always answering the largest class, {name} ({percent(share)} of all)."]


def majority(classes: Mapping[str, Mapping[str, int]], split: str = "val") -> tuple[str, float]:
    """Return the class that has the most training samples, and its share of a split, of all if that is unknown.

    That share is the accuracy of always answering this class.
    """
    if not classes:
        return "", 0.0
    name = max(classes, key=lambda key: classes[key].get("train", sum(classes[key].values())))
    of_split = {key: row.get(split, 0) for key, row in classes.items()}
    counts = of_split if sum(of_split.values()) else {key: sum(row.values()) for key, row in classes.items()}
    return name, counts[name] / max(1, sum(counts.values()))


def _no_better_than_the_mean(best: Mapping[str, float], count: int) -> list[str]:
    r2 = number(best.get("val_r2"))
    if not math.isfinite(r2):
        return []
    if r2 <= 0 or (count and r2_interval(r2, count)[0] <= 0):
        return ["This is not clearly better than always answering the mean of the target."]
    return [f"The columns explain {r2:.0%} of how the target varies on the validation rows."]


def _interval(value: float, count: int, metric: str) -> tuple[float, float]:
    """Return the 95% interval of a metric on so many samples; if their number is unknown, the value itself."""
    if not count:
        return value, value
    return r2_interval(value, count) if metric == "r2" else wilson_interval(min(max(value, 0.0), 1.0), count)


def _overfitting(facts: Mapping[str, Any], best: Mapping[str, float], metric: str, count: int) -> list[str]:
    """Say that training and validation are apart by more than is normal and than both samples explain."""
    train, val = (number(best.get(f"{part}_{metric}")) for part in ("train", "val"))
    if not (count and math.isfinite(train) and math.isfinite(val) and len(facts["history"]) > 1):
        return []
    trained = int(number(facts["counts"].get("train")) if facts["counts"].get("train") else 0)
    floor = difference_floor(
        train, _interval(train, trained, metric)[0], val, max(val, _interval(val, count, metric)[1])
    )
    if floor <= _MATERIAL_GAP:
        return []
    if metric == "r2":
        return [
            f"It overfits: R2 is {train:.2f} on the training rows and {val:.2f} on the validation rows. More rows, "
            "fewer epochs or a higher dropout narrow this gap."
        ]
    noun = facts.get("noun", "images")
    remedy = "augmentation" if noun == "images" else "dropout"
    return [
        f"It overfits: in its best epoch it was right on {percent(train)} of the training {noun} and on "
        f"{percent(val)} of the validation {noun}. More {noun} or stronger {remedy} narrow this gap."
    ]


def _rising_loss(history: Sequence[Mapping[str, float]], count: int) -> list[str]:
    """Say that the validation loss rose while the training loss fell, by more than samples and jitter explain.

    The cross-entropies of single samples spread about as widely as their mean, as exponential ones do.
    """
    losses = [row.get("val_loss", math.nan) for row in history]
    if len(history) < 3 or not count or not all(math.isfinite(loss) for loss in losses):
        return []
    now, low = _mean(losses[-_fifth(history) :]), min(losses)
    noise = math.hypot(math.hypot(now, low) / math.sqrt(count), jitter(losses))
    fell = history[-1].get("train_loss", math.inf) < history[0].get("train_loss", math.nan)
    if not fell or now <= _MATERIAL_RISE * low or now - low <= Z95 * noise:
        return []
    return [
        f"The validation loss rose from {low:.3g} (epoch {history[losses.index(low)]['epoch']:g}) to "
        f"{losses[-1]:.3g} while the training loss fell: it grew too sure of its mistakes."
    ]


def _trend(history: Sequence[Mapping[str, float]], best: Mapping[str, float], metric: str, count: int) -> list[str]:
    """Say whether the metric still rose when training ended, if its best epoch is among the last fifth."""
    if len(history) == 1 and history[0].get("lr") == 0:
        return [
            "Only the head was fitted, to the outputs of the layers before it. With --time-limit 600 more layers are "
            "trained."
        ]
    if len(history) == 1:
        return ["One epoch shows no trend; more epochs will tell."]
    fifth = _fifth(history)
    if not best or best.get("epoch", 0) <= history[-1]["epoch"] - fifth:
        return []
    curve = [number(row.get(f"val_{metric}")) for row in history]
    late, before = curve[-fifth:], curve[-2 * fifth : -fifth]
    if not all(math.isfinite(value) for value in late + before):
        return []
    gain = _mean(late) - _mean(before)
    noise = _gain_noise(curve, count, metric, fifth)
    last = history[-1]["epoch"]
    name = f"The last epoch, {last:g}," if best["epoch"] == last else f"Epoch {best['epoch']:g} of {last:g}"
    change = f"{gain:.3f}" if metric == "r2" else f"{100 * gain:.1f} points"
    if gain > max(noise, _MATERIAL_GAIN):
        advice = "the run may profit from more epochs"
        return [f"{name} was the best one and the last fifth still brought {change}: {advice}."]
    if gain > _MATERIAL_GAIN:
        return [f"{name} was the best one, but what the last fifth brought ({change}) is within the noise."]
    return [f"{name} was the best one, but the last fifth brought nothing that counts: more epochs would bring little."]


def _gain_noise(curve: Sequence[float], count: int, metric: str, fifth: int) -> float:
    """Return what a mean over the last fifth of a curve may exceed the one over the fifth before by chance (95%).

    The samples are the same in both, so what counts is the jitter of the curve, and that a few samples have to change
    at all. A curve too short to show its jitter has the sampling error of independent samples instead.
    """
    if not count:
        return math.inf
    if len(curve) >= 5:
        return max(Z95 * jitter(curve) * math.sqrt(2 / fifth), _DISCORDANT / count)
    if metric == "r2":
        low, high = r2_interval(max(curve[-2], 0.0), count)
        return math.sqrt(2) * (high - low) / 2
    return Z95 * math.sqrt(2) * share_noise(curve[-2], count)


def _waiting(history: Sequence[Mapping[str, float]]) -> list[str]:
    waits = [row["data_time_fraction"] for row in history if math.isfinite(row.get("data_time_fraction", math.nan))]
    if not waits or _mean(waits) <= _MATERIAL_WAIT:
        return []
    return [f"Training waited for data {percent(_mean(waits))} of the time."]


def _nothing_notable(
    history: Sequence[Mapping[str, float]], best: Mapping[str, float], metric: str, count: int
) -> list[str]:
    """Say how far training and validation are apart, how certain that is, and that later epochs were no better."""
    train, val = (number(best.get(f"{part}_{metric}")) for part in ("train", "val"))
    if not math.isfinite(train - val):
        return []
    low, high = _interval(val, count, metric)
    after = history[-1]["epoch"] - best["epoch"]
    clear = "no overfitting" if train - low <= _MATERIAL_GAP or count == 0 else "no clear overfitting"
    doubt = f" (the {count:,} validation samples leave {100 * (high - low) / 2:.0f} points of doubt)"
    later = f"; the {after:g} epoch{'s' * (after != 1)} after epoch {best['epoch']:g} brought nothing more"
    later = later if after > 0 else ""
    return [
        f"Training and validation {'R2' if metric == 'r2' else 'accuracy'} are {abs(train - val) * 100:.1f} points "
        f"apart: {clear}{doubt if clear == 'no clear overfitting' else ''}{later}."
    ]


def _fifth(history: Sequence[Any]) -> int:
    return max(1, len(history) // 5)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def percent(value: Any, digits: int = 1) -> str:
    """Format a share as a percentage, or a dash if it is not finite."""
    share = number(value)
    return f"{share * 100:.{digits}f}\N{NO-BREAK SPACE}%" if math.isfinite(share) else "–"
