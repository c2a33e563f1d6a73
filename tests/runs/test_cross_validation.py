import json
import shutil
from collections import Counter

import numpy as np
import pytest
import yaml
from image_folders import image_bytes
from small_runs import QUICK, StopAt, Words, image_folder, numbers, quick, same_runs, table
from table_files import homes, written

import skipway as sw
from skipway.errors import InputError, Interrupted
from skipway.report import html
from skipway.runs import train_phases
from skipway.runs.cross_validation import cross_validate
from skipway.runs.feature_cache import FeatureCache
from skipway.runs.finished_run import CrossValidation, Run
from skipway.runs.headline import offer_folds
from skipway.runs.train_run import train
from skipway.utils.run_schema import SCHEMA
from skipway.utils.uncertainty import wilson_interval


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("folds")


@pytest.fixture(scope="module")
def data(place):
    """Images with a validation and a test split, and a copy in the validation split of a training image."""
    root = image_folder(place / "kinds", 5, ("train", "val", "test"))
    shutil.copy(root / "train" / "ant" / "00.png", root / "val" / "ant" / "copy.png")
    return root


def fast_report(monkeypatch):
    def write(folder):
        (folder / "report.html").write_text("")
        return folder / "report.html"

    monkeypatch.setattr(html, "write", write)


@pytest.fixture
def bare(monkeypatch):
    fast_report(monkeypatch)


@pytest.fixture(scope="module")
def crossed(data, place):
    """A cross-validation in three folds, and what it printed."""
    words = Words()
    with pytest.MonkeyPatch.context() as patch:
        fast_report(patch)
        return quick(data, place / "runs", words, folds=3), words


def split_of(run):
    return {row["file"]: row["split"] for row in table(run.path / "splits.csv")}


def test_every_image_outside_the_test_split_is_evaluated_once_by_a_model_that_was_not_trained_on_it(crossed, data):
    result, _ = crossed
    files = {f"{split}/{p.parent.name}/{p.name}" for split in ("train", "val") for p in (data / split).rglob("*.png")}
    assert len(files) == 31 and isinstance(result, CrossValidation) and len(result.runs) == 3
    validated = Counter()
    for run in result.runs:
        split = split_of(run)
        evaluated = [row["file"] for row in table(run.path / "predictions.csv")]
        assert sorted(evaluated) == sorted(name for name, part in split.items() if part == "val")
        assert set(split) == files and split["train/ant/00.png"] == split["val/ant/copy.png"]
        validated.update(evaluated)
    assert validated == dict.fromkeys(files, 1)
    rows = table(result.path / "predictions.csv")
    assert [row["file"] for row in rows] == sorted(files)
    for row in rows:
        assert split_of(result.runs[int(row["fold"]) - 1])[row["file"]] == "val"


def test_the_metrics_are_those_of_the_predictions(crossed):
    result, words = crossed
    values = json.loads((result.path / "folds.json").read_text())
    assert values == {"schema": SCHEMA, **result.metrics}
    rows = table(result.path / "predictions.csv")
    right = np.array([row["label"] == row["predicted"] for row in rows])
    assert values["accuracy"] == right.mean() and values["count"] == 31
    assert values["accuracy_interval"] == list(wilson_interval(right.mean(), 31))
    assert values["loss"] == pytest.approx(np.mean([float(row["loss"]) for row in rows]))
    assert values["constant_answer"]["answer"] == "ant" and values["constant_answer"]["accuracy"] == 11 / 31
    of_folds = [right[[row["fold"] == str(k) for row in rows]].mean() for k in (1, 2, 3)]
    assert [fold["accuracy"] for fold in values["folds"]] == pytest.approx(of_folds)
    assert values["mean"] == pytest.approx(np.mean(of_folds))
    assert values["standard_deviation"] == pytest.approx(np.std(of_folds, ddof=1))
    assert [float(row["accuracy"]) for row in table(result.path / "folds.csv")] == pytest.approx(of_folds)
    assert [fold["val"] for fold in values["folds"]] == [fold["fold_size"] for fold in sizes(rows)]
    low, high = values["accuracy_interval"]
    expected = f"cross-validation accuracy: {right.mean():.2%} on 31 images (95% interval {low:.1%} to {high:.1%}"
    assert expected in words


def sizes(rows):
    counts = Counter(row["fold"] for row in rows)
    return [{"fold_size": counts[str(k)]} for k in (1, 2, 3)]


def test_it_prints_a_line_per_fold_and_what_the_result_is_of(crossed):
    result, words = crossed
    assert words.lines[0] == (
        f"cross-validation {result.path}\ndata: kinds, 3 folds of 31 images (the 15 train and 16 val images are "
        "pooled, the 15 test images are left out)"
    )
    assert [line.partition(":")[0] for line in words.lines[1:4]] == [f"fold {k} of 3" for k in (1, 2, 3)]
    assert len(words.lines) == 5
    assert "note: each of the 3 models was trained on 67% of the images and evaluated on the rest." in words
    assert "To train a model for use, run the same command without --folds." in words
    assert "so the result is slightly optimistic" in words and "--folds 3 cross-validates" not in words


def test_folds_are_runs_like_any_other_and_a_function_of_the_seed(crossed, data, place, tmp_path, bare):
    result, _ = crossed
    again = quick(data, tmp_path, folds=3)
    assert all(same_runs(one.path, two.path) for one, two in zip(result.runs, again.runs, strict=True))
    alone = quick(data, tmp_path, folds=3, fold=2)
    assert same_runs(result.runs[1].path, alone.path) and not isinstance(alone, CrossValidation)
    assert alone.metrics["val_accuracy"] == result.runs[1].metrics["val_accuracy"]
    repeated = train(config=result.runs[1].path / "config.yaml", output=str(tmp_path), name="repeated")
    assert same_runs(repeated.path, alone.path)
    other = quick(data, tmp_path, folds=3, fold=2, seed=1)
    assert split_of(other) != split_of(alone)
    evaluation = sw.evaluate(alone.path, data, split="test")
    assert 0 <= evaluation.accuracy <= 1
    assert (place / "runs" / "last").resolve() == result.path.resolve()


def test_a_stopped_cross_validation_resumes_exactly(crossed, data, tmp_path, bare, monkeypatch):
    result, _ = crossed
    with pytest.raises(
        Interrupted, match="stopped by SIGTERM in fold 2 of 3, work saved. Resume with --resume .*part."
    ):
        stop_in_fold(data, tmp_path, 2, monkeypatch)
    folder = tmp_path / "part"
    assert not (folder / "folds.json").exists() and not (folder / "fold-3").exists()
    first = (folder / "fold-1" / "metrics.json").stat().st_mtime_ns
    words = Words()
    resumed = train(resume=tmp_path / "last", console=words)
    assert (folder / "fold-1" / "metrics.json").stat().st_mtime_ns == first
    assert words.lines[1].endswith(", already done") and resumed.path == folder
    assert all(same_runs(one.path, two.path) for one, two in zip(result.runs, resumed.runs, strict=True))
    timed = ("seconds", "folds")
    assert {k: v for k, v in resumed.metrics.items() if k not in timed} == {
        k: v for k, v in result.metrics.items() if k not in timed
    }
    assert (folder / "predictions.csv").read_bytes() == (result.path / "predictions.csv").read_bytes()
    again = train(resume=folder)
    assert again.metrics == resumed.metrics and again.history == resumed.history


def stop_in_fold(data, output, number, monkeypatch):
    """Run until the first epoch of a fold is saved."""
    stop = StopAt(10**9)
    write = train_phases.write_results

    def write_and_stop(folder, history):
        write(folder, history)
        if folder.name == f"fold-{number}":
            stop.at = 0

    with monkeypatch.context() as patch:
        patch.setattr(train_phases, "write_results", write_and_stop)
        quick(data, output, folds=3, name="part", stop=stop)


def test_a_cross_validation_is_no_model(crossed):
    with pytest.raises(
        InputError, match="expected the folder of one model, got a cross-validation. Train without --fo"
    ):
        sw.load(crossed[0].path)


def test_options_that_belong_to_all_folds_stay_when_resuming(crossed, bare):
    result, _ = crossed
    message = "cannot change epochs, seed of a cross-validation: expected the options of .*config.yaml for all folds"
    with pytest.raises(InputError, match=message):
        train(resume=result.path, epochs=3, seed=1)
    shutil.rmtree(result.path / "fold-3" / "plots")
    (result.path / "fold-3" / "report.html").unlink()  # as if it had been stopped at its end
    words = Words()
    train(resume=result.path, epochs=2, threads=1, folds=3, output=result.path.parent, console=words)
    assert "already finished after 2 epochs: only evaluated and reported again" in words
    kept = yaml.safe_load((result.path / "config.yaml").read_text())
    assert kept["folds"] == 3 and kept["schema"] == SCHEMA and "patience" not in kept


def test_images_that_changed_between_folds_are_refused(data, tmp_path, bare, monkeypatch):
    copy = shutil.copytree(data, tmp_path / "copy")
    with pytest.raises(Interrupted, match="in fold 1 of 3"):
        stop_in_fold(copy, tmp_path, 1, monkeypatch)
    train(resume=tmp_path / "part" / "fold-1")
    (copy / "train" / "bee" / "new.png").write_bytes(image_bytes(7, 8, 1))
    message = (
        "cannot pool the folds of .*: expected the images of fold-1 in fold-2, got different ones. Restore the data"
    )
    with pytest.raises(InputError, match=message):
        train(resume=tmp_path / "part")


def test_a_damaged_table_of_predictions_is_named(crossed, tmp_path):
    result, _ = crossed
    folder = shutil.copytree(result.path, tmp_path / "copy", symlinks=True)
    path = folder / "fold-2" / "predictions.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    message = "cannot read .*fold-2/predictions.csv: expected one row for each validation sample. Remove .*fold-2, and"
    with pytest.raises(InputError, match=message):
        train(resume=folder)
    path.unlink()
    with pytest.raises(InputError, match=message):
        train(resume=folder)


@pytest.mark.parametrize("odd", [{"data": None}, {"val_accuracy": None}, {"val_loss": float("nan")}, {"resolved": []}])
def test_a_fold_with_damaged_metrics_is_evaluated_again(crossed, data, tmp_path, bare, odd):
    whole, _ = crossed
    folder = shutil.copytree(whole.path, tmp_path / whole.path.name)
    file = folder / "fold-1" / "metrics.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | odd))
    assert train(data, resume=folder).metrics["accuracy"] == whole.metrics["accuracy"]


def test_too_many_folds_are_refused_and_leave_no_folder(data, tmp_path):
    message = "cannot make 11 folds of kinds: expected at least 11 different images of each class, got 10 of 'ant'"
    with pytest.raises(InputError, match=message):
        quick(data, tmp_path / "runs", folds=11)
    assert list((tmp_path / "runs").iterdir()) == []
    with pytest.raises(InputError, match="folds: expected a whole number from 2 to 1,000, got 1"):
        quick(data, tmp_path, folds=1)
    with pytest.raises(InputError, match="fold: expected a number from 1 to 3, the number of folds, got 4"):
        quick(data, tmp_path, folds=3, fold=4)
    with pytest.raises(
        InputError, match="cannot train one fold: expected the number of folds, got none. Add --folds 5"
    ):
        quick(data, tmp_path, fold=1)
    with pytest.raises(InputError, match="val_fraction: expected no value with folds"):
        quick(data, tmp_path, folds=3, val_fraction=0.3)
    with pytest.raises(InputError, match="balance: expected none or weights with weight_column, got sampling"):
        quick(data, tmp_path, weight_column="w", balance="sampling")
    with pytest.raises(InputError, match="split_by: expected no value with folds, which would validate on samples"):
        quick(data, tmp_path, folds=3, split_by="day")
    with pytest.raises(InputError, match="cannot cross-validate: expected DATA, got none"):
        train(folds=3)


def test_several_processes_are_refused(data, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="cannot train all folds: expected one process, got 2. Drop --nproc, or train"):
        quick(data, tmp_path, folds=3)


def test_a_name_that_is_taken_is_refused_also_if_its_folds_are_not_done(crossed, data, place):
    result, _ = crossed
    with pytest.raises(InputError, match="holds a run already. Resume it with --resume"):
        quick(data, place / "runs", folds=3, name=result.path.name)


def test_all_folds_share_the_features_of_trained_weights(crossed, data, place, tmp_path, bare, monkeypatch):
    monkeypatch.setenv("SKIPWAY_CACHE", str(tmp_path / "cache"))  # no other test has filled it
    computed = []
    compute = FeatureCache._compute

    def counting(self, batches, ids, view, **rows):
        computed.append(len(rows["missing"]))
        compute(self, batches, ids, view, **rows)

    monkeypatch.setattr(FeatureCache, "_compute", counting)
    options = {**QUICK, "model": "auto", "pretrained": str(crossed[0].runs[0].path), "output": tmp_path}
    result = train(data, folds=3, **{**options, "epochs": 1})
    assert computed == [31] and {run.metrics["epochs"] for run in result.runs} == {1}
    train(data, folds=3, **{**options, "epochs": 2, "freeze_until": "stage1", "views": 2})
    assert computed == [31] * 4  # two views and the images as they are
    assert result.metrics["accuracy"] > 0.8


def test_a_time_limit_is_shared_out(data, tmp_path, bare):
    result = train(data, folds=2, output=tmp_path, time_limit=600.0, **QUICK)
    recipes = [yaml.safe_load((run.path / "config.yaml").read_text()) for run in result.runs]
    assert [recipe["time_limit"] for recipe in recipes] == [300.0, 300.0]
    assert [recipe["fold"] for recipe in recipes] == [1, 2]


def test_later_folds_take_over_what_the_first_one_has_measured(data, tmp_path):
    asked = []

    def record(**options):
        asked.append(options)
        folder = tmp_path / "runs" / "kinds-2-folds" / options["name"]
        (folder / "weights").mkdir(parents=True)
        (folder / "config.yaml").write_text(yaml.safe_dump({"schema": SCHEMA, "img_size": 64}))
        (folder / "env.json").write_text(json.dumps({"schema": SCHEMA, "threads": 7}))
        if len(asked) == 2:
            raise RuntimeError
        facts = {"data": {"counts": {"train": 2, "val": 1}}, "resolved": {"model": "net"}}
        metrics = dict.fromkeys(("val_accuracy", "val_loss", "epochs", "best_epoch", "seconds"), 1)
        return Run(folder, metrics | facts, [])

    options = {"data": str(data), "folds": 2, "output": str(tmp_path / "runs"), "time_limit": 60.0}
    with pytest.raises(RuntimeError):
        cross_validate(record, options, console=Words())
    assert [call.get("img_size") for call in asked] == [None, 64]
    assert [call.get("threads") for call in asked] == [None, 7]


@pytest.mark.parametrize("target, metric", [("price", "r2"), ("dear", "accuracy")])
def test_tables_are_cross_validated(tmp_path, bare, target, metric):
    place = tmp_path / "homes"
    place.mkdir()
    for i, split in enumerate(("train", "val", "test")):
        written(place / f"{split}.csv", homes(40, i))
    words = Words()
    other = "dear" if target == "price" else "price"
    result = train(place, target=target, ignore=other, folds=4, epochs=3, output=tmp_path / "runs", console=words)
    rows = table(result.path / "predictions.csv")
    assert Counter(row["row"].split(":")[0] for row in rows) == {"train.csv": 40, "val.csv": 40}
    assert len({row["row"] for row in rows}) == 80
    assert [run.metrics["data"]["counts"]["val"] for run in result.runs] == [20] * 4
    for run in result.runs:
        val = {row["row"] for row in table(run.path / "splits.csv") if row["split"] == "val"}
        assert val == {row["row"] for row in table(run.path / "predictions.csv")}
    assert "4 folds of 80 rows (the 40 train and 40 val rows are pooled, the 40 test rows are left out)" in words
    if metric == "r2":
        targets, predicted = (np.array([float(row[name]) for row in rows]) for name in ("target", "predicted"))
        expected = 1 - np.square(targets - predicted).sum() / np.square(targets - targets.mean()).sum()
        assert result.metrics["r2"] == pytest.approx(expected)
        assert result.metrics["rmse"] == pytest.approx(np.sqrt(np.square(targets - predicted).mean()))
        assert "RMSE" in words and {row["fold"] for row in rows} == {"1", "2", "3", "4"}
    else:
        assert result.metrics["accuracy"] == np.mean([row["label"] == row["predicted"] for row in rows])


def test_networks_grow_in_each_fold(data, tmp_path, bare):
    grown = {**QUICK, "model": "auto", "grow": "resnet20:1,resnet32:1"}
    result = train(data, folds=2, output=tmp_path, **grown)
    assert [run.metrics["resolved"]["model"] for run in result.runs] == ["resnet32"] * 2


@pytest.mark.parametrize(
    "train_count, val_count, expected",
    [
        (40, 10, "hint: only 20 validation images; --folds 5 cross-validates on all 100"),
        (3, 1, "hint: only 2 validation images; --folds 4 cross-validates on all 8"),
        (80, 20, ""),
        (1, 0, ""),
    ],
)
def test_folds_are_offered_to_small_sets(train_count, val_count, expected):
    classes = {name: {"train": train_count, "val": val_count} for name in "ab"}
    counts = {"train": 2 * train_count, "val": 2 * val_count, "test": 500}
    line = offer_folds({"counts": counts, "classes": classes}, "images")
    assert (expected in line) if expected else not line


def test_a_run_on_few_images_ends_with_the_offer(data, tmp_path, bare):
    words = Words()
    run = quick(data, tmp_path, words, val_fraction=0.5, epochs=1, allow_duplicates=True)
    hint = "hint: only 16 validation images; --folds 5 cross-validates on all 31"
    assert words.lines[-1].splitlines()[-1] == hint and numbers(run.path)["data"]["counts"]["test"] == 15
