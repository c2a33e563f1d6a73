"""The four checks at the top of a report: data, fit, calibration and speed, each with one sentence."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from skipway.report.calibration import Bias, Reliability
from skipway.report.plot_style import shorten
from skipway.report.run_reader import mapping, number
from skipway.report.verdicts import fit_verdicts, percent, waiting

__all__ = ["Check", "State", "run_checks"]

_NOISY = 0.1  # sampling error of confidence minus accuracy, above which nothing is concluded
_WIDE = 0.1  # width of the 95% interval of an accuracy or of R2, above which the data are too few


class State(Enum):
    """Result of a check; the values are classes of the stylesheet."""

    PASS = "pass"
    WARN = "warn"
    UNKNOWN = "not measured"


@dataclass(frozen=True)
class Check:
    """A check of a run: its name, its result and one sentence."""

    name: str
    state: State
    text: str


def run_checks(facts: Mapping[str, Any]) -> list[Check]:
    """Return the checks of data, fit, calibration and speed.

    Args:
        facts: those of `verdicts`, and skipped_count (None if unknown), warnings, headline, reliability, bias.
    """
    return [_data(facts), _fit(facts), _calibration(facts), _speed(facts)]


def _data(facts: Mapping[str, Any]) -> Check:
    """Warn of skipped samples, warnings, and an evaluation on too few samples."""
    noun, counts, skipped = facts["noun"], facts["counts"], facts["skipped_count"]
    kind = "file" if noun == "images" else "row"
    problems = []
    if skipped:
        problems.append(f"{skipped:,} {kind}{'s were' if skipped != 1 else ' was'} skipped")
    if count := len(facts["warnings"]):
        problems.append(f"{count} warning{'s are' if count != 1 else ' is'} listed under Data")
    for row in facts["headline"][-1:]:
        if row["interval"] and row["interval"][1] - row["interval"][0] > _WIDE:
            width = row["interval"][1] - row["interval"][0]
            span = f"{width:.2f}" if row["metric"] == "R2" else f"{100 * width:.1f} points"
            problems.append(f"{row['count']:,} {row['split']} {noun} leave an interval of {span}")
    if problems:
        return Check("Data", State.WARN, _sentence("; ".join(problems)))
    if skipped is None or not counts:
        return Check("Data", State.UNKNOWN, "This run does not list its skipped samples.")
    return Check("Data", State.PASS, f"All {sum(counts.values()):,} {noun} were used, without a warning.")


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _fit(facts: Mapping[str, Any]) -> Check:
    """Report the most important verdict on the fit."""
    found = fit_verdicts(facts)
    if not found:
        text = "No finished epoch has both metrics." if facts["history"] else "No epoch was finished."
        return Check("Fit", State.UNKNOWN, text)
    return Check("Fit", State.WARN if found[0].is_warning else State.PASS, found[0].text)


def _calibration(facts: Mapping[str, Any]) -> Check:
    """Compare confidence with accuracy, or the mean error of predicted numbers with its sampling error."""
    if facts["regression"]:
        return _bias(facts["bias"])
    result: Reliability | None = facts["reliability"]
    if result is None:
        return Check("Calibration", State.UNKNOWN, "This run has no predictions with probabilities.")
    if result.noise > _NOISY:
        count = "1 prediction is" if result.count == 1 else f"{result.count:,} predictions are"
        return Check("Calibration", State.UNKNOWN, f"{count} too few to compare confidence with accuracy.")
    values = f"mean confidence is {percent(result.confidence)} at {percent(result.accuracy)} accuracy"
    if facts.get("multilabel"):
        values = (
            f"the mean probability of a label is {percent(result.confidence)} at {percent(result.accuracy)} frequency"
        )
    if not result.is_off:
        gap = f"a gap of {100 * abs(result.gap):.1f} points (sampling error {100 * result.noise:.1f})"
        return Check("Calibration", State.PASS, _sentence(f"{values}, {gap}"))
    if result.gap > 0:
        word = "Probabilities are too high" if facts.get("multilabel") else "Overconfident"
        return Check("Calibration", State.WARN, f"{word}: {values}.")
    if facts.get("multilabel"):
        return Check("Calibration", State.WARN, f"Probabilities are too low: {values}.")
    smoothing = number(mapping(facts["metrics"].get("resolved")).get("label_smoothing"))
    if smoothing > 0 and -result.gap <= smoothing + result.noise:  # the share of the target that smoothing moves
        return Check("Calibration", State.PASS, f"Underconfident as label smoothing {smoothing:g} intends: {values}.")
    reason = f" (trained with label smoothing {smoothing:g})" if smoothing > 0 else ""
    return Check("Calibration", State.WARN, f"Underconfident: {values}{reason}.")


def _bias(result: Bias | None) -> Check:
    if result is None:
        return Check("Calibration", State.UNKNOWN, "This run has no predictions with errors.")
    value = f"{result.mean:+.3g} ± {result.noise:.2g}"
    of_target = f" of {shorten(result.target, 30)}" if result.target else ""
    if result.is_off:
        word = "high" if result.mean > 0 else "low"
        return Check(
            "Calibration", State.WARN, f"Predictions{of_target} are too {word}: the mean error is {value} (95%)."
        )
    return Check(
        "Calibration",
        State.PASS,
        f"Predictions are unbiased within the noise: the mean error{of_target} is {value} (95%).",
    )


def _speed(facts: Mapping[str, Any]) -> Check:
    """Warn of training that waits for data."""
    history = facts["history"]
    trained = [row for row in history if row.get("lr") != 0]
    waits = [value for value in (number(row.get("data_time_fraction")) for row in trained) if math.isfinite(value)]
    speed = number(facts["metrics"].get("samples_per_second", history[-1].get("samples_per_second") if history else ""))
    rate = f"{speed:,.0f} {facts['noun']}/s" if math.isfinite(speed) else ""
    if history and not trained and rate:
        return Check("Speed", State.PASS, f"{rate}; the head was fitted in one pass over the {facts['noun']}.")
    if not waits:
        return Check("Speed", State.UNKNOWN, "This run did not measure how long training waited for data.")
    if waiting(history):
        remedy = "more threads or a faster disk may help" if facts["noun"] == "images" else "larger batches may help"
        return Check("Speed", State.WARN, f"{waiting(history)[0][:-1]}: {remedy}.")
    share = percent(sum(waits) / len(waits))
    start = f"{rate}; t" if rate else "T"
    return Check("Speed", State.PASS, f"{start}raining waited for data {share} of the time.")
