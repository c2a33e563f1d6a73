"""Verdicts on synthetic curves: one or more curves for each, and curves on which it must not be given."""

import math

import numpy as np
import pytest

from skipway.report.verdicts import majority, verdicts

OVERFITS, CHANCE, SURE, MORE = (
    "model overfits",
    "not clearly better than",
    "became overconfident",
    "more epochs may help",
)
LITTLE, NOISE, NOTHING, NO_GAP = "would probably bring little", "within the noise", "was better", "no overfitting"
DOUBT, BROKEN, WAITS, ONE = "no clear overfitting", "was not finite", "waited for data", "1 epoch shows no trend"
SHORT, LOSS, CUT = "too few for a trend", "the validation loss fell further", "The time limit ended training"
ALL = (OVERFITS, CHANCE, SURE, MORE, LITTLE, NOISE, NOTHING, NO_GAP, DOUBT, BROKEN, WAITS, ONE, SHORT, LOSS, CUT)
LIMIT = {"status": "stopped by the time limit"}


def curve(epochs=20, start=0.5, end=0.9, tau=4.0, noise=0.0, seed=0):
    """Return a metric that saturates with a time constant of `tau` epochs."""
    rng = np.random.default_rng(seed)
    values = end - (end - start) * np.exp(-np.arange(epochs) / tau)
    return np.clip(values + noise * rng.standard_normal(epochs), -1, 1)


def says(val, train=None, *, val_loss=None, train_loss=None, best=None, count=1000, metric="accuracy", **facts):
    val = np.asarray(val, dtype=float)
    train = val if train is None else np.asarray(train, dtype=float)
    val_loss = 1.1 - val if val_loss is None else np.asarray(val_loss, dtype=float)
    train_loss = 1.1 - train if train_loss is None else np.asarray(train_loss, dtype=float)
    columns = {f"train_{metric}": train, f"val_{metric}": val, "train_loss": train_loss, "val_loss": val_loss}
    history = [{"epoch": i + 1.0, **{k: float(v[i]) for k, v in columns.items()}} for i in range(len(val))]
    row = history[(int(np.nanargmax(val)) + 1 if best is None else best) - 1] if history else {}
    classes = {"ant": {"train": 400, "val": 50}, "bee": {"train": 400, "val": 50}}
    base = {"history": history, "best": row, "classes": classes, "counts": {"train": 800, "val": count}}
    return " ".join(verdicts({**base, "regression": metric == "r2", **facts}))


FLAT = np.full(20, 0.9)
EARLY = np.concatenate([np.linspace(0.5, 0.9, 8), np.full(12, 0.89)])  # best in epoch 8
SHARE = {"ant": {"train": 90, "val": 9}, "bee": {"train": 10, "val": 1}}

# name -> (what is said, its sentences), every other sentence of ALL must be absent
CASES = {
    "nothing to see": (says(EARLY), {NO_GAP, NOTHING}),
    "overfits": (says(EARLY, EARLY + 0.095), {OVERFITS}),
    "a gap of 9.5 points on 40 samples": (says(EARLY, EARLY + 0.095, count=40), {DOUBT, NOTHING}),
    "a gap of 30 points on 40 samples": (says(EARLY - 0.2, EARLY + 0.09, count=40), {OVERFITS}),
    "a gap of 4 points on many": (says(EARLY, EARLY + 0.04, count=10**6), {NO_GAP, NOTHING}),
    "more validation than training accuracy": (says(EARLY, EARLY - 0.2), {NO_GAP, NOTHING}),
    "at chance": (says(np.full(20, 0.51), best=3, count=100), {CHANCE}),
    "1 of 4 above chance": (says(np.full(20, 0.75), best=3, count=4), {CHANCE}),
    "4 of 4": (says(np.full(20, 1.0), best=3, count=4), {CHANCE}),
    "12 of 12": (says(np.full(20, 1.0), best=3, count=12), {DOUBT, NOTHING}),
    "imbalanced, at the majority": (says(FLAT, best=3, classes=SHARE), {CHANCE}),
    "imbalanced, above it": (says(FLAT + 0.05, best=3, classes=SHARE), {NO_GAP, NOTHING}),
    "sure of its mistakes": (
        says(EARLY, train_loss=np.linspace(1, 0.1, 20), val_loss=[*np.linspace(1, 0.4, 8), *np.linspace(0.4, 0.9, 12)]),
        {SURE},
    ),
    "the same on 4 samples": (
        says(
            np.full(20, 1.0),
            best=3,
            count=4,
            train_loss=np.linspace(1, 0.1, 20),
            val_loss=[*np.linspace(1, 0.4, 8), *np.linspace(0.4, 0.9, 12)],
        ),
        {CHANCE},
    ),
    "a loss that jumps about": (
        says(EARLY, train_loss=np.linspace(1, 0.1, 20), val_loss=0.5 + 0.2 * (-1.0) ** np.arange(20)),
        {NO_GAP, NOTHING},
    ),
    "a loss that rises with the training loss": (
        says(EARLY, train_loss=np.linspace(0.1, 1, 20), val_loss=[*np.linspace(1, 0.4, 8), *np.linspace(0.4, 0.9, 12)]),
        {NO_GAP, NOTHING},
    ),
    "still rising": (says(np.linspace(0.5, 0.9, 20)), {MORE}),
    "still rising, best before the last": (says([*np.linspace(0.5, 0.9, 19), 0.89]), {MORE}),
    "saturated, the last the best": (says(curve(tau=2.0)), {LITTLE}),
    "rising on 20 samples by half a sample": (says(np.linspace(0.7, 0.8, 20), count=20), {NOISE}),
    "noise whose highest is the last": (says([*(0.8 + 0.03 * (-1.0) ** np.arange(19)), 0.86], count=2000), {NOISE}),
    "two epochs, clearly better": (says([0.6, 0.8]), {MORE}),
    "two epochs on 20 samples": (says([0.7, 0.8], count=20), {NOISE}),
    "two epochs, the first the best": (says([0.8, 0.79]), {NO_GAP, NOTHING}),
    "two epochs, flat": (says([0.8, 0.801]), {SHORT}),
    "one epoch": (says([0.9]), {ONE}),
    "two epochs, the first the best, but the loss falls": (says([0.8, 0.79], val_loss=[1.0, 0.9]), {NO_GAP, LOSS}),
    "cut by the time limit while both losses fell": (
        says([0.8, 0.79], train_loss=[1.2, 1.0], val_loss=[1.0, 0.9], metrics=LIMIT),
        {CUT},
    ),
    "cut by the time limit after the loss rose": (
        says([0.8, 0.79], train_loss=[1.2, 1.0], val_loss=[1.0, 1.1], metrics=LIMIT),
        {NO_GAP, NOTHING},
    ),
    "cut while the accuracy rose": (says([0.6, 0.8], metrics=LIMIT), {CUT}),
    "a later epoch has a higher accuracy": (says([*np.full(9, 0.9), 0.92], best=5, count=100), {DOUBT}),
    "not finite": (says([0.6, 0.5], train_loss=[1, math.nan], best=1), {BROKEN}),
    "an r2 of nothing": (says(np.full(20, 0.02), best=3, count=80, metric="r2"), {CHANCE}),
    "an r2 below nothing": (says(np.full(20, -0.2), best=3, count=80, metric="r2"), {CHANCE}),
    "an r2 of a tenth on many": (says(np.full(20, 0.1), best=3, count=800, metric="r2"), {NO_GAP, NOTHING}),
    "an r2 that overfits": (says(EARLY - 0.4, EARLY, count=200, metric="r2"), {OVERFITS}),
    "the same on 12 rows": (says(EARLY - 0.1, EARLY, count=12, metric="r2"), {DOUBT, NOTHING}),
    "an r2 that rises": (says(np.linspace(0.1, 0.6, 20), count=300, metric="r2"), {MORE}),
    "an r2 that is flat at the end": (says(curve(end=0.6, start=0.1, tau=2.0), count=300, metric="r2"), {LITTLE}),
    "an r2 of two epochs on 12 rows": (says([0.6, 0.65], count=12, metric="r2"), {NOISE}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_curve_has_its_verdicts_and_no_others(name):
    sentences, expected = CASES[name]
    assert {verdict for verdict in ALL if verdict in sentences} == expected, sentences


def test_noise_alone_gives_no_verdict_but_that_of_the_noise():
    """Of 200 flat curves with the jitter of 200 samples at most a few are taken for a trend or for overfitting."""
    wrong = 0
    for seed in range(200):
        sentences = says(curve(start=0.85, end=0.85, noise=0.025, seed=seed), np.full(20, 0.86), count=200)
        wrong += any(verdict in sentences for verdict in (OVERFITS, SURE, MORE, CHANCE))
    assert wrong <= 10


def test_waiting_for_data_is_reported():
    rows = [{"epoch": e, "train_accuracy": 0.9, "val_accuracy": 0.9, "data_time_fraction": 0.5} for e in (1.0, 2.0)]
    facts = {"history": rows, "best": rows[0], "classes": {}, "counts": {"val": 100}}
    assert WAITS in " ".join(verdicts(facts)) and verdicts({**facts, "history": []})[0].startswith("No epoch")


def test_at_most_three_sentences_are_given():
    rows = [
        {"epoch": e, "train_accuracy": 0.9, "val_accuracy": 0.2, "data_time_fraction": 0.5, "train_loss": math.nan}
        for e in (1.0, 2.0)
    ]
    facts = {"history": rows, "best": rows[1], "classes": {"a": {"train": 5}}, "counts": {"val": 100, "train": 100}}
    assert len(verdicts(facts)) == 3


def test_the_constant_answer_is_evaluated_on_the_split():
    classes = {"a": {"train": 9, "val": 1}, "b": {"train": 5, "val": 3}}
    assert majority(classes) == ("a", 0.25)
    assert majority(classes, "test") == ("a", pytest.approx(10 / 18))
    assert majority({"a": {"train": 9}, "b": {"train": 1}}) == ("a", 0.9) and majority({}) == ("", 0.0)


def test_a_head_that_was_fitted_alone_is_named():
    row = {"epoch": 1.0, "lr": 0.0, "train_accuracy": 0.95, "val_accuracy": 0.94, "train_loss": 0.2, "val_loss": 0.2}
    classes = {"ant": {"train": 400, "val": 50}, "bee": {"train": 400, "val": 50}}
    facts = {"history": [row], "best": row, "classes": classes, "counts": {"train": 800, "val": 100}}
    assert verdicts(facts) == [
        "Only the head was fitted, to the outputs of the frozen layers; --time-limit 600 trains more layers."
    ]


def test_a_head_that_was_fitted_first_is_no_point_of_the_curve():
    """Its loss has no label smoothing: the epochs after it have another one, whatever they bring."""
    head = {"epoch": 1.0, "lr": 0.0, "train_accuracy": 1.0, "val_accuracy": 0.931, "train_loss": 0.66, "val_loss": 0.2}
    common = {"lr": 1e-3, "train_accuracy": 0.99}
    losses, accuracies = (0.32, 0.28, 0.28, 0.29, 0.26, 0.26, 0.255, 0.255), np.linspace(0.914, 0.955, 8)
    rows = [
        {"epoch": e + 2, "val_accuracy": accuracy, "train_loss": 0.6 - e / 50, "val_loss": loss, **common}
        for e, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True))
    ]
    facts = {"best": rows[-1], "classes": {}, "counts": {"train": 2567, "val": 550}}
    found = verdicts({**facts, "history": [head, *rows]})
    assert found == verdicts({**facts, "history": rows}) and SURE not in " ".join(found)


def test_spans_of_epochs_are_counted():
    assert "In the last epoch validation accuracy still rose by 20.0 points" in says([0.6, 0.8])
    assert "Over the last 4 epochs validation accuracy still rose by" in says(np.linspace(0.5, 0.9, 20))
    assert "after 2 epochs" in says([0.6, 0.8], metrics=LIMIT) and "1 epochs" not in says([0.9])
