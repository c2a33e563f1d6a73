"""Verdicts: sentences of a report that its numbers allow, such as overfitting, chance level or too few epochs."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from skipway.report.run_reader import number

__all__ = ["percent", "verdicts", "wilson_interval"]


def verdicts(facts: dict[str, Any]) -> list[str]:
    """Put the numbers into words, the most important first; at most three sentences, all of them counted."""
    history, best, sentences = facts["history"], facts["best"], []
    if not history:
        return ["No epoch was finished, so there is nothing to judge yet."]
    broken = [row["epoch"] for row in history if "train_loss" in row and not math.isfinite(row["train_loss"])]
    if broken:
        sentences.append(
            f"The training loss was not finite in epoch {broken[0]:g}: a lower learning rate usually mends this."
        )
    if facts.get("regression"):
        return (sentences + _regression_verdicts(history, best))[:3]
    train, val = (best.get(f"{part}_accuracy", math.nan) for part in ("train", "val"))
    last, gap = history[-1]["epoch"], train - val
    common = max((sum(row.values()) for row in facts["classes"].values()), default=0)
    share = common / max(1, sum(sum(row.values()) for row in facts["classes"].values()))
    count = facts["counts"].get("val", 0)
    if count and share and math.isfinite(val) and wilson_interval(val, count)[0] <= share:
        sentences.append(
            f"This is not clearly better than always answering the largest class ({percent(share)} of all)."
        )
    noun = facts.get("noun", "pictures")
    remedy = "augmentation" if noun == "pictures" else "dropout"
    if gap > 0.1 and len(history) > 1:
        sentences.append(
            f"It overfits: in its best epoch it was right on {percent(train)} of the training {noun} and on "
            f"{percent(val)} of the validation {noun}. More {noun} or stronger {remedy} narrow this gap."
        )
    losses = [row.get("val_loss", math.nan) for row in history]
    low = min((x for x in losses if math.isfinite(x)), default=math.nan)
    if (
        len(history) > 2
        and losses[-1] > 1.2 * low
        and history[-1].get("train_loss", math.inf) < history[0].get("train_loss", math.nan)
    ):
        sentences.append(
            f"The validation loss rose from {low:.3g} (epoch {history[losses.index(low)]['epoch']:g}) to "
            f"{losses[-1]:.3g} while the training loss fell: it grew too sure of its mistakes."
        )
    if len(history) == 1:
        sentences.append("One epoch shows no trend; more epochs will tell.")
    elif best and best["epoch"] == last:
        early = [row.get("val_accuracy", math.nan) for row in history[: max(1, len(history) * 4 // 5)]]
        gain = 100 * (val - max((x for x in early if math.isfinite(x)), default=math.nan))
        short = gain > 0.3 or train < 0.9  # a network that has not learned its training pictures has not had its time
        advice = "the run may profit from more epochs" if short else "more epochs would bring little"
        since = f" and the last fifth still brought {gain:.1f} points" if gain > 0.3 else ""
        since = since or f", but the last fifth brought {max(gain, 0.0):.1f} points"
        sentences.append(f"The last epoch, {last:g}, was the best one{since}: {advice}.")
    waits = [row["data_time_fraction"] for row in history if math.isfinite(row.get("data_time_fraction", math.nan))]
    if waits and sum(waits) / len(waits) > 0.25:
        sentences.append(f"Training waited for data {percent(sum(waits) / len(waits))} of the time.")
    if not sentences and math.isfinite(gap):
        after = f"; the {last - best['epoch']:g} epochs after epoch {best['epoch']:g} brought nothing more"
        sentences.append(
            f"Training and validation accuracy are {abs(gap) * 100:.1f} points apart: no overfitting{after}."
        )
    return sentences[:3]


def _regression_verdicts(history: Sequence[Mapping[str, float]], best: Mapping[str, float]) -> list[str]:
    """What the figures of a regression say; at most three sentences, all of them counted."""
    train, val = (number(best.get(f"{part}_r2")) for part in ("train", "val"))
    sentences = []
    if val <= 0:
        sentences.append("This is no better than always answering the mean of the target.")
    elif math.isfinite(val):
        sentences.append(f"The columns explain {val:.0%} of how the target varies on the validation rows.")
    if train - val > 0.2:
        sentences.append(
            f"It overfits: R2 is {train:.2f} on the training rows and {val:.2f} on the validation rows. More rows, "
            "fewer epochs or a higher dropout narrow this gap."
        )
    if len(history) > 1 and best and best.get("epoch") == history[-1].get("epoch"):
        sentences.append("The last epoch was the best one: the run may profit from more epochs.")
    return sentences[:3] or ["One epoch shows no trend; more epochs will tell."]


def wilson_interval(accuracy: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share that was counted on `count` pictures (Wilson, 1927).

    >>> [round(bound, 4) for bound in wilson_interval(0.9, 100)]
    [0.8256, 0.9448]
    """
    z = 1.959964
    centre = (accuracy + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(accuracy * (1 - accuracy) / count + z * z / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def percent(value: Any, digits: int = 1) -> str:
    """Format a share as a percentage, or a dash if it is not finite."""
    share = number(value)
    return f"{share * 100:.{digits}f}\N{NO-BREAK SPACE}%" if math.isfinite(share) else "–"
