"""Verdicts: the conclusions that the numbers of a run allow, such as overfitting, chance level or too few epochs.

None follows from a fixed gap alone. A difference between splits has to exceed the sampling error of both. A change over
the epochs has to exceed the jitter of the curve and the sampling error of the metric; see `utils.uncertainty`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from skipway.report.run_reader import mapping, number
from skipway.utils.format_text import count_of
from skipway.utils.primary_metric import PRIMARY_METRICS, PrimaryMetric
from skipway.utils.uncertainty import (
    Z95,
    difference_floor,
    exceeds_share,
    jitter,
    r2_interval,
    share_noise,
    wilson_interval,
)

__all__ = ["Verdict", "fit_verdicts", "majority", "metric_of", "percent", "verdicts", "waiting"]

_MATERIAL_GAP = 0.05  # between training and validation: a smaller one is normal, however certain
_MATERIAL_GAIN = 0.003  # of the metric in the last fifth of the epochs
_MATERIAL_RISE = 1.2  # of the validation loss over its lowest value
_MATERIAL_WAIT = 0.25  # share of the time
_SHORT = 5  # epochs, below which a flat end is no evidence that more epochs would bring little
_DISCORDANT = 4  # samples that have to change for the better before a sign test sees it (2 standard deviations)
_MAX_SENTENCES = 3


@dataclass(frozen=True)
class Verdict:
    """A sentence about a run; `is_warning` if it reports a problem."""

    text: str
    is_warning: bool = False


def verdicts(facts: Mapping[str, Any]) -> list[str]:
    """Return the conclusions from the metrics of a run, the most important first, in at most three sentences.

    Args:
        facts: history (rows of results.csv), best (the row of the best epoch), classes, counts; and if known
            regression, noun, metrics.
    """
    if not facts["history"]:
        return ["No epoch was finished, so there are no results yet."]
    sentences = [verdict.text for verdict in fit_verdicts(facts)]
    return [*sentences, *waiting(facts["history"])][:_MAX_SENTENCES]


def fit_verdicts(facts: Mapping[str, Any]) -> list[Verdict]:
    """Return the verdicts on how well a run fits its data, the most important first; see `verdicts` for `facts`."""
    history, best = facts["history"], facts["best"]
    if not history:
        return []
    regression = bool(facts.get("regression"))
    metric = metric_of(facts).name
    count = _count(facts, "val")
    # A head that was fitted first has another loss, without label smoothing, and is no point of the curve after it.
    trained = history[1:] if len(history) > 1 and history[0].get("lr") == 0 else history
    warnings = [
        *_not_finite(history),
        *(_no_better_than_the_mean(best, count) if regression else _chance_level(facts, best, count)),
        *_overfitting(facts, best, metric, count),
        *([] if regression else _rising_loss(trained, count)),
        *_cut_short(facts, trained),
    ]
    found = [Verdict(text, is_warning=True) for text in warnings]
    if not _cut_short(facts, trained):
        found += _trend(trained, best, metric, count)
    return found or [Verdict(text) for text in _nothing_notable(history, best, metric, count)]


def metric_of(facts: Mapping[str, Any]) -> PrimaryMetric:
    """Return the primary metric of a run, by its regression and multilabel; by default accuracy."""
    if facts.get("regression"):
        return PRIMARY_METRICS["r2"]
    return PRIMARY_METRICS["map" if facts.get("multilabel") else "accuracy"]


def _count(facts: Mapping[str, Any], split: str) -> int:
    """Return the number of samples of a split, 0 if it is not known."""
    value = number(facts["counts"].get(split))
    return int(value) if math.isfinite(value) else 0


def _not_finite(history: Sequence[Mapping[str, float]]) -> list[str]:
    broken = [row["epoch"] for row in history if "train_loss" in row and not math.isfinite(row["train_loss"])]
    if not broken:
        return []
    return [f"The training loss was not finite in epoch {broken[0]:g}: a lower learning rate usually fixes this."]


def _chance_level(facts: Mapping[str, Any], best: Mapping[str, float], count: int) -> list[str]:
    """Report an accuracy that may be that of a constant answer: its interval reaches the share of the largest class."""
    if facts.get("multilabel"):
        return _frequency_level(facts)
    accuracy = best.get("val_accuracy", math.nan)
    name, share = majority(facts["classes"])
    if not count or not share or not math.isfinite(accuracy) or exceeds_share(accuracy, count, share):
        return []
    return [
        f"Accuracy is not clearly better than always predicting the largest class, {name} ({percent(share)} of all)."
    ]


def _frequency_level(facts: Mapping[str, Any]) -> list[str]:
    """Report a mean average precision that may be that of constant probabilities, as the run measured it."""
    constant = mapping(mapping(facts.get("metrics")).get("val_constant_answer"))
    if constant.get("exceeded") is not False:
        return []
    share = percent(constant.get("map"))
    return [f"mAP is not clearly better than always predicting the frequency of each label ({share})."]


def majority(classes: Mapping[str, Mapping[str, float]], split: str = "val") -> tuple[str, float]:
    """Return the class that has the most training samples, and its share of a split, of all if that is unknown.

    That share is the accuracy of always predicting this class.
    """
    if not classes:
        return "", 0.0
    name = max(classes, key=lambda key: classes[key].get("train", sum(classes[key].values())))
    of_split = {key: row.get(split, 0) for key, row in classes.items()}
    counts = of_split if sum(of_split.values()) else {key: sum(row.values()) for key, row in classes.items()}
    return name, counts[name] / (sum(counts.values()) or 1)


def _no_better_than_the_mean(best: Mapping[str, float], count: int) -> list[str]:
    r2 = number(best.get("val_r2"))
    if not math.isfinite(r2) or (r2 > 0 and (not count or r2_interval(r2, count)[0] > 0)):
        return []
    return ["R2 is not clearly better than always predicting the mean of the target."]


def _interval(value: float, count: int, metric: str) -> tuple[float, float]:
    """Return the 95% interval of a metric on `count` samples; the value itself if their number is unknown."""
    if not count:
        return value, value
    return r2_interval(value, count) if metric == "r2" else wilson_interval(min(max(value, 0.0), 1.0), count)


def _overfitting(facts: Mapping[str, Any], best: Mapping[str, float], metric: str, count: int) -> list[str]:
    """Report training and validation metrics that differ by more than is normal and than both samples explain."""
    train, val = (number(best.get(f"{part}_{metric}")) for part in ("train", "val"))
    if not (count and math.isfinite(train) and math.isfinite(val) and len(facts["history"]) > 1):
        return []
    trained = _count(facts, "train")
    floor = difference_floor(
        train, _interval(train, trained, metric)[0], val, max(val, _interval(val, count, metric)[1])
    )
    if floor <= _MATERIAL_GAP:
        return []
    if metric == "r2":
        return [
            f"The model overfits: R2 is {train:.3f} on the training rows and {val:.3f} on the validation rows. More "
            "rows, fewer epochs or more dropout reduce this gap."
        ]
    noun = facts.get("noun", "images")
    remedy = "augmentation" if noun == "images" else "dropout"
    return [
        f"The model overfits: in the {facts.get('kept_epoch', 'best')} epoch its accuracy is {percent(train)} on the "
        f"training {noun} and {percent(val)} on the validation {noun}. More {noun} or stronger {remedy} reduce this "
        "gap."
    ]


def _rising_loss(history: Sequence[Mapping[str, float]], count: int) -> list[str]:
    """Report a validation loss that rose while the training loss fell, by more than samples and jitter explain.

    The cross-entropies of single samples spread about as widely as their mean, as exponential ones do.
    """
    losses = [row.get("val_loss", math.nan) for row in history]
    if len(history) < 3 or not count or not all(math.isfinite(loss) for loss in losses):
        return []
    now, low = _mean(losses[-_fifth(history) :]), min(losses)
    noise = math.hypot(math.hypot(now, low) / math.sqrt(count), jitter(losses))
    if not _fell(history, "train_loss") or now <= _MATERIAL_RISE * low or now - low <= Z95 * noise:
        return []
    return [
        f"The validation loss rose from {low:.3g} (epoch {history[losses.index(low)]['epoch']:g}) to "
        f"{losses[-1]:.3g} while the training loss fell: the model became overconfident in its mistakes."
    ]


def _cut_short(facts: Mapping[str, Any], history: Sequence[Mapping[str, float]]) -> list[str]:
    """Report a run that its time limit ended while both losses still fell."""
    status = str(mapping(facts.get("metrics")).get("status", ""))
    if "time limit" not in status or len(history) < 2:
        return []
    if not all(_fell(history[-2:], key) for key in ("train_loss", "val_loss")):
        return []
    epochs = _epochs(int(history[-1]["epoch"]))
    return [f"The time limit ended training after {epochs}, while both losses still fell: more time may help."]


def _fell(history: Sequence[Mapping[str, float]], key: str) -> bool:
    return history[-1].get(key, math.inf) < history[0].get(key, math.nan)


def _trend(history: Sequence[Mapping[str, float]], best: Mapping[str, float], metric: str, count: int) -> list[Verdict]:
    """Report the trend of the metric at the end of training, if the best epoch is among the last fifth."""
    if len(history) == 1 and history[0].get("lr") == 0:
        return [
            Verdict(
                "Only the head was fitted, to the outputs of the frozen layers; --time-limit 600 trains more layers."
            )
        ]
    if len(history) == 1:
        return [Verdict("1 epoch shows no trend.")]
    fifth = _fifth(history)
    if not best or best.get("epoch", 0) <= history[-1]["epoch"] - fifth:
        return []
    curve = [number(row.get(f"val_{metric}")) for row in history]
    late, before = curve[-fifth:], curve[-2 * fifth : -fifth]
    if not all(math.isfinite(value) for value in late + before):
        return []
    gain = _mean(late) - _mean(before)
    name = PRIMARY_METRICS[metric].title
    change = f"{abs(gain):.3f}" if metric == "r2" else f"{100 * abs(gain):.1f} points"
    span = f"Over the last {_epochs(fifth)} validation {name}" if fifth > 1 else f"In the last epoch validation {name}"
    if gain > max(_gain_noise(curve, count, metric, fifth), _MATERIAL_GAIN):
        return [Verdict(f"{span} still rose by {change}: more epochs may help.", is_warning=True)]
    if gain > _MATERIAL_GAIN:
        return [Verdict(f"{span} rose by {change}, which is within the noise.")]
    level = f"{span} did not clearly rise ({'+' if gain >= 0 else '-'}{change})"
    if len(history) < _SHORT:
        return [Verdict(f"{level}; {_epochs(len(history))} are too few for a trend.")]
    return [Verdict(f"{level}: more epochs would probably bring little.")]


def _gain_noise(curve: Sequence[float], count: int, metric: str, fifth: int) -> float:
    """Return the gain of a mean over the last fifth of a curve, over the fifth before, that chance explains (95%).

    The samples are the same in both, so the jitter of the curve counts, and that a few samples have to change at all. A
    curve too short to show its jitter has the sampling error of independent samples instead.
    """
    if not count:
        return math.inf
    if len(curve) >= 5:
        return max(Z95 * jitter(curve) * math.sqrt(2 / fifth), _DISCORDANT / count)
    if metric == "r2":
        low, high = r2_interval(max(curve[-2], 0.0), count)
        return math.sqrt(2) * (high - low) / 2
    return Z95 * math.sqrt(2) * share_noise(curve[-2], count)


def waiting(history: Sequence[Mapping[str, float]]) -> list[str]:
    """Report training that waited for data for more than a quarter of its time."""
    waits = [row["data_time_fraction"] for row in history if math.isfinite(row.get("data_time_fraction", math.nan))]
    if not waits or _mean(waits) <= _MATERIAL_WAIT:
        return []
    return [f"Training waited for data {percent(_mean(waits))} of the time."]


def _nothing_notable(
    history: Sequence[Mapping[str, float]], best: Mapping[str, float], metric: str, count: int
) -> list[str]:
    """Write the gap between training and validation, its uncertainty, and how later epochs compare."""
    if metric == "map":  # the training batches have another metric
        losses = [number(best.get(f"{part}_loss")) for part in ("train", "val")]
        if not all(map(math.isfinite, losses)):
            return []
        text = f"In epoch {best['epoch']:g}, the loss is {losses[0]:.3g} in training and {losses[1]:.3g} in validation"
        return [f"{text}{_later_epochs(history, best, metric)}."]
    train, val = (number(best.get(f"{part}_{metric}")) for part in ("train", "val"))
    if not math.isfinite(train - val):
        return []
    low, high = _interval(val, count, metric)
    clear = "no overfitting" if train - low <= _MATERIAL_GAP or count == 0 else "no clear overfitting"
    doubt = f" (the interval on {count:,} validation samples spans {100 * (high - low):.0f} points)"
    gap = f"{abs(train - val):.3f}" if metric == "r2" else f"{100 * abs(train - val):.1f} points"
    return [
        f"Training and validation {'R2' if metric == 'r2' else 'accuracy'} are {gap} apart: "
        f"{clear}{doubt if clear == 'no clear overfitting' else ''}{_later_epochs(history, best, metric)}."
    ]


def _later_epochs(history: Sequence[Mapping[str, float]], best: Mapping[str, float], metric: str) -> str:
    """Write how the epochs after the best one compare, if there are any."""
    later = [row for row in history if row["epoch"] > best["epoch"]]
    scores = [number(row.get(f"val_{metric}")) for row in later]
    if not later or not all(map(math.isfinite, scores)) or max(scores) > best[f"val_{metric}"]:
        return ""
    name = PRIMARY_METRICS[metric].title
    if later[-1].get("val_loss", math.inf) < best.get("val_loss", math.nan):
        return f"; after epoch {best['epoch']:g} the validation loss fell further, but {name} did not rise"
    return f"; no epoch after epoch {best['epoch']:g} was better"


def _epochs(count: int) -> str:
    return count_of(count, "epoch")


def _fifth(history: Sequence[Any]) -> int:
    return max(1, len(history) // 5)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def percent(value: Any, digits: int = 1) -> str:
    """Format a share as a percentage, or a dash if it is not finite.

    >>> percent(0.98912)
    '98.9%'
    """
    share = number(value)
    return f"{share * 100:.{digits}f}%" if math.isfinite(share) else "–"
