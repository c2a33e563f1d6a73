"""The whole road of tables: train, stop, resume, predict, evaluate, check, summary, report, and the command line."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
from processes import run_python
from small_runs import Words, numbers, same_runs, table
from table_files import homes, lines, written

import skipway as sw
from skipway.cli import app
from skipway.commands.prediction_output import write_predictions
from skipway.data.column_roles import COLUMN_OPTIONS, ColumnRoles
from skipway.errors import InputError, Interrupted
from skipway.runs.datamodule import open_datamodule
from skipway.runs.read_options import CHECK_OPTIONS, READ_OPTIONS
from skipway.runs.train_run import train
from skipway.training.checkpoint import load_weights
from skipway.utils import stop_signals
from skipway.utils.run_schema import SCHEMA
from skipway.utils.stop_signals import StopFlag

QUICK = {"epochs": 3, "batch_size": 16}


def quick(data, output, console=None, **options):
    return train(data, output=output, console=console, **{**QUICK, **options})


class After(Words):
    """A console that asks for a stop once so many epochs were said."""

    def __init__(self, epochs, stop):
        super().__init__()
        self.left, self.stop = epochs, stop

    def print(self, text):
        super().print(text)
        self.left -= re.match(r" +\d+/\d+ ", text) is not None
        if not self.left:
            self.stop.request("SIGTERM")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return written(tmp_path_factory.mktemp("homes") / "homes.csv", homes(120))


@pytest.fixture(scope="module")
def price(home):
    return quick(home, home.parent / "runs", target="price", ignore="dear", name="price", epochs=25, lr=0.01)


@pytest.fixture(scope="module")
def dear(home):
    return quick(home, home.parent / "runs", target="dear", ignore="price", name="dear", epochs=25, lr=0.01)


@pytest.mark.rendered
def test_a_regression_leaves_its_figures_tables_and_images(price):
    found = numbers(price.path)
    assert found["val_r2"] > 0.45 and found["val_mae"] < found["val_rmse"] and "val_accuracy" not in found
    assert found["baseline"]["name"] == "gradient boosting" and found["baseline"]["val_r2"] > 0
    assert found["data"]["target"] == "price"
    assert found["data"]["columns"] == {"number": 1, "category": 1, "boolean": 1, "date": 1}
    results = table(price.path / "results.csv")
    assert len(results) == 25 and {"train_r2", "val_r2", "val_loss"} <= set(results[0])
    rows = table(price.path / "predictions.csv")
    assert list(rows[0]) == ["row", "split", "target", "predicted", "error"] and len(rows) == 24
    assert float(rows[0]["error"]) == pytest.approx(float(rows[0]["predicted"]) - float(rows[0]["target"]), abs=1e-3)
    splits = table(price.path / "splits.csv")
    assert len(splits) == 120 and re.fullmatch(r"homes.csv:\d+", splits[0]["row"]) and len(splits[0]["digest"]) == 34
    assert (price.path / "plots" / "predicted.png").stat().st_size > 5000
    assert not (price.path / "confusion_matrix.csv").exists()
    encoders = json.loads((price.path / "encoders.json").read_text())
    assert (
        encoders.pop("schema") == SCHEMA
        and encoders["target_names"] == ["price"]
        and encoders == sw.load(price.path).spec.as_dict()
    )


def test_a_classification_leaves_what_one_of_images_does(dear):
    found = numbers(dear.path)
    assert found["val_accuracy"] > 0.7 and 0.4 < found["baseline"]["val_accuracy"] <= 1
    assert found["data"]["classes"].keys() == {"cheap", "dear"}
    assert {r["class"] for r in table(dear.path / "per_class.csv")} == {"cheap", "dear"}
    assert "row" in table(dear.path / "predictions.csv")[0] and (dear.path / "confusion_matrix.csv").exists()


def test_the_console_names_the_style_of_numbers_that_are_not_plain(tmp_path):
    frame = homes(60).assign(fee=[f"{i * 37},{i % 9} €" for i in range(60)])
    recipe = sw.Recipe(data=str(written(tmp_path / "t.csv", frame)), target="dear")
    data = open_datamodule(recipe, new=True, epochs_given=False)
    said = [line for line in data.summary_lines() if line.startswith("  column 'fee'")]
    assert said == ["  column 'fee': decimal comma, unit '€', such as '1036,1 €'"]


def text_of(page):
    page = re.sub(r"<style.*?</style>|<[^>]*>", " ", page, flags=re.S)
    return " ".join(page.split())


def test_the_report_speaks_of_rows_and_numbers(price, dear):
    page = text_of(price.report.read_text())
    assert "Validation R2" in page and "Mean absolute error" in page and "Predicted and true values" in page
    assert "Largest errors" in page and "Confusion matrix" not in page and "icture" not in page
    assert "Gradient boosting (scikit-learn defaults)" in page and "rows/s" in page
    assert "Column Kind Why Style Missing Odd Example size number numbers around" in page
    assert re.search(r"garden boolean only \S+no\S+ and \S+yes\S+ 0.0% 0.0% ", page)
    assert "with --columns to set other kinds" in page
    page = text_of(dear.report.read_text())
    assert "Validation accuracy" in page and "validation rows are on the diagonal" in page
    assert "Highest-loss images" not in page and "Gradient boosting (scikit-learn defaults)" in page


def test_the_header_of_the_weights_is_all_that_is_needed(price, home):
    header = load_weights(price.best)[1]
    assert {c["name"] for c in header["spec"]["columns"]} == {"size", "city", "garden", "built"}
    network = sw.load(price.best)
    frame = pd.read_csv(home)
    assert np.allclose(network.predict(frame), network.predict(home), equal_nan=False)
    assert isinstance(network.spec, sw.TableSpec) and network.spec == sw.TableSpec.from_dict(network.spec.as_dict())
    with pytest.raises(
        InputError, match="cannot predict probabilities: expected a model of classes or labels, got a regression"
    ):
        network.predict_proba(frame)
    with pytest.raises(InputError, match="cannot encode the matrix: expected 4 columns as in training, got all but"):
        network.predict(np.zeros((2, 4)))
    with pytest.raises(InputError, match=r"predict: expected a DataFrame, a matrix \(N, F\) or the path of a .csv"):
        network.predict(3)
    with pytest.raises(InputError, match="cannot use images: expected an image model, got one trained on a table"):
        network.probabilities([np.zeros((8, 8, 1), np.uint8)])


def test_predict_needs_no_target_finds_columns_by_name_and_counts_the_unseen(dear, home):
    frame = pd.read_csv(home)
    plain = sw.predict(dear.path, home)
    frame = frame[["garden", "built", "size", "city"]].assign(more=1)
    words = Words()
    assert [p.top for p in sw.predict(dear.path, frame, console=words)] == [p.top for p in plain]
    frame.loc[:2, "city"] = "Mars"
    rows = sw.predict(dear.path, frame, console=words)
    assert len(rows) == 120 and "values of 'city' rarely or never seen in training: 3" in words
    assert sum(share for _, share in rows[0].top) == pytest.approx(1)
    assert dear.network().predict(frame) == [p.top[0][0] for p in rows]
    with pytest.raises(InputError, match="expected 4 columns as in training, got all but 'city',"):
        sw.predict(dear.path, frame[["size", "built"]])


def test_a_row_that_cannot_be_used_has_a_reason_and_the_others_their_answer(price, tmp_path):
    path = lines(
        tmp_path / "new.csv",
        "size,city,garden,built",
        "50,Ulm,yes,1950-01-15",
        "many,Ulm,yes,1950-01-15",
        "60,Bonn,no,yesterday",
        ",,,",
        "70,Mars,no,1960-02-15",
    )
    rows = sw.predict(price.path, path)
    assert [r.usable for r in rows] == [True, False, False, True, True]
    assert rows[1].reason == "column 'size': expected a number, got 'many'"
    assert str(rows[2]).startswith("new.csv:4: error: column 'built': expected a date such as")
    write_predictions(tmp_path / "out.csv", rows, 3)
    out = table(tmp_path / "out.csv")
    assert [r["status"] for r in out] == ["ok", "error", "error", "ok", "ok"] and len(out) == 5
    assert float(out[0]["predicted"]) == rows[0].value and out[1]["predicted"] == ""
    with pytest.raises(InputError, match="cannot predict: expected at least one table with rows, got none"):
        sw.predict(price.path, [])


def test_cells_that_a_spreadsheet_would_run_are_harmless_in_every_table(tmp_path):
    frame = homes(60)
    frame["dear"] = frame["dear"].map({"dear": "=cmd()", "cheap": "@sum"})
    path = written(tmp_path / "=homes.csv", frame)
    run = quick(path, tmp_path / "runs", target="dear", ignore="price", name="r")
    write_predictions(run.path / "out.csv", sw.predict(run.path, path), 2)
    for file in ("splits.csv", "predictions.csv", "per_class.csv", "confusion_matrix.csv", "out.csv"):
        for row in table(run.path / file):
            assert not [v for v in row.values() if str(v)[:1] in "=@" and v], file
    assert {r["target"] for r in table(run.path / "splits.csv")} == {"'=cmd()", "'@sum"}
    assert run.network().spec.class_names == ("=cmd()", "@sum")


def test_evaluate_measures_what_it_is_given(price, dear, home, tmp_path):
    judged = sw.evaluate(price.path, home)
    assert judged.count == 120 and judged.r2 > 0.7 and str(judged).startswith("all: R2 0.")
    judged = sw.evaluate(dear.path, home)
    assert judged.accuracy > 0.7 and "rows" in str(judged).splitlines()[0]
    with pytest.raises(InputError, match="expected the split train, got 'test'"):
        sw.evaluate(dear.path, home, split="test")
    (tmp_path / "images" / "a").mkdir(parents=True)
    with pytest.raises(InputError, match="expected a table, because the model was trained on one. Pass a .csv"):
        sw.evaluate(dear.path, tmp_path / "images")


def test_check_and_summary_tell_of_tables(home, price):
    said = str(sw.check(home, target="price"))
    assert "homes: 120 train rows; target 'price': a number (regression)" in said
    assert "3 distinct values\n" in said and "numbers around" in said
    assert "  dear    category  0%" in said and "  price   target    0%" in said
    assert "missing values in 'size'" in said
    report = str(sw.check("breast_cancer"))
    assert "no problems found" in report and "class benign: 357 rows" in report
    from skipway.commands.summary import summarize

    assert "for an input of 1x12" in str(summarize(str(price.path)))


@pytest.mark.parametrize("target", ["price", "dear"])
def test_a_run_stopped_after_any_epoch_and_resumed_equals_one_that_never_stopped(home, tmp_path, target):
    whole = quick(home, tmp_path, target=target, name="whole")
    for epochs in (1, 2):
        stop = StopFlag()
        with pytest.raises(Interrupted):
            quick(home, tmp_path, After(epochs, stop), target=target, name=f"stopped{epochs}", stop=stop)
        resumed = train(resume=tmp_path / f"stopped{epochs}")
        assert same_runs(whole.path, resumed.path)
        assert resumed.metrics["val_loss"] == whole.metrics["val_loss"]


def test_a_killed_run_resumes_to_the_same_bits(home, tmp_path):
    whole = quick(home, tmp_path, target="price", name="whole", epochs=6)
    code = f"""
import os, skipway.training.loop as loop
from skipway.runs.datamodule import open_datamodule
from skipway.runs.train_run import train
count, real = [0], loop.StepLog.check
def fatal(*a):
    count[0] += 1
    if count[0] > 40: os.kill(os.getpid(), 9)
    real(*a)
loop.StepLog.check = fatal
train({str(home)!r}, output={str(tmp_path)!r}, target="price", name="killed", epochs=6, batch_size=16, save_every=0)
"""
    assert run_python(code).returncode == -9
    assert same_runs(whole.path, train(resume=tmp_path / "killed").path)


def test_other_rows_are_refused_when_resuming_unless_they_are_meant(tmp_path):
    frame = homes(60)
    path = written(tmp_path / "homes.csv", frame)
    run = quick(path, tmp_path, target="price", name="r")
    frame.loc[3, "size"] = 77.7
    written(path, frame.iloc[:-1])
    with pytest.raises(
        InputError, match=r"expected the same rows in .*homes.csv, got changed ones \(.*edited.*\). Restore"
    ):
        train(resume=run.path, epochs=4)
    again = train(resume=run.path, epochs=4, allow_changed_data=True)
    assert again.metrics["epochs"] == 4 and again.network().spec == run.network().spec
    with pytest.raises(
        InputError, match="cannot change target when resuming: target was price, got dear. Drop --target"
    ):
        train(resume=run.path, target="dear")


def test_epochs_precision_and_threads_suit_tables_unless_told(home, tmp_path):
    before = torch.get_num_threads()
    run = train(home, target="price", output=tmp_path, time_limit=0)
    assert run.metrics["resolved"]["epochs"] == 2 and run.metrics["resolved"]["precision"] == "fp32"
    assert run.metrics["resolved"]["optimizer"] == "adamw"
    assert json.loads((run.path / "env.json").read_text())["threads"] == 1
    assert torch.get_num_threads() == before
    assert quick(home, tmp_path, target="price", model="resmlp").network().plan["width"] == 128


def test_what_is_for_images_is_refused_for_tables_and_the_reverse(home, tmp_path):
    with pytest.raises(InputError, match="cannot train resnet18 on .*homes.csv: expected a network for tables, got"):
        quick(home, tmp_path, target="price", model="resnet18")
    with pytest.raises(
        InputError, match="cannot use --augment and --mixup with .*homes.csv: expected images, got a table"
    ):
        quick(home, tmp_path, target="price", augment="light", mixup=0.2)
    with pytest.raises(
        InputError,
        match="--balance and --label-smoothing with the target 'price': expected classes or labels, got regression",
    ):
        quick(home, tmp_path, target="price", balance="sampling", label_smoothing=0.1)
    with pytest.raises(
        InputError,
        match="cannot use --target with digits: expected a table or parquet files, got images. Drop",
    ):
        quick("digits", tmp_path, target="price")
    with pytest.raises(
        InputError, match="task: expected one of auto, classification, multilabel, regression, got 'guess'"
    ):
        quick(home, tmp_path, target="price", task="guess")
    image = sw.create_model("resnet20", 2)
    with pytest.raises(InputError, match="cannot use a table: expected a model trained on a table, got an image"):
        image.require_table_spec()
    assert not list(tmp_path.iterdir())


def test_a_table_with_parts_of_its_own_uses_them(tmp_path):
    folder = tmp_path / "split"
    folder.mkdir()
    for i, name in enumerate(("train", "val", "test")):
        written(folder / f"{name}.csv", homes(40, i))
    run = quick(folder, tmp_path / "runs", target="price", ignore="dear")
    assert "test_r2" in run.metrics and {r["split"] for r in table(run.path / "predictions.csv")} == {"test"}
    assert "test_r2" in run.metrics["baseline"]


def test_the_command_line_takes_tables(home, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stop_signals, "STOP", StopFlag())

    def skipway(*words):
        with pytest.raises(SystemExit) as ended:
            app.main([str(word) for word in words])
        return ended.value.code or 0, *capfd.readouterr()

    code, out, said = skipway("train", home, "--target", "dear", "--ignore", "price", "--epochs", 2, "-o", "runs")
    assert code == 0 and "columns: 1 number, 1 category, 1 boolean, 1 date; target 'dear': 2 classes" in out + said
    bad = lines(tmp_path / "bad.csv", "size,city,garden,built", "1,Ulm,yes,1950-01-15", "x,Ulm,yes,1950-01-15")
    code, out, said = skipway("predict", "runs/last", bad, "--csv", "out.csv", "--strict")
    assert code == 2 and "1 of 2 rows could not be used" in said and "bad.csv:3: error: column 'size'" in out
    code, out, said = skipway("train", bad)
    assert code == 2 and said.count("\n") == 1 and "expected --target, got none. Choose one of" in said


def test_a_run_of_an_earlier_version_has_digests_that_cannot_be_compared(tmp_path):
    run = sw.train("wine", epochs=1, output=tmp_path)
    path = run.path / "splits.csv"
    path.write_text(path.read_text().replace(",2:", ","))
    spoken = Words()
    sw.evaluate(run.path, "wine", console=spoken)
    assert "an earlier version of skipway trained this model, so rows of its training set are not" in spoken
    datamodule = open_datamodule(sw.Recipe(data="wine"), new=True, epochs_given=True)
    assert "an earlier version of skipway stored digests of rows" in datamodule.describe_changes(run.path)


def test_a_rate_of_0_is_0_and_none_is_the_default(home, tmp_path):
    def plan(**options):
        recipe = sw.Recipe(data=str(home), target="price", **options)
        return open_datamodule(recipe, new=True, epochs_given=True).network(Words())[0].plan

    assert [plan(dropout=rate)["dropout"] for rate in (None, 0, 0.5)] == [0.1, 0.0, 0.5]
    assert plan()["drop_path"] == 0 and plan(drop_path=0.3)["drop_path"] == 0.3


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_table_without_a_column_of_the_training_table_is_named_with_the_column(tmp_path, monkeypatch, capfd, split):
    written(tmp_path / "train.csv", homes(30))
    written(tmp_path / f"{split}.csv", homes(30, 1).drop(columns="city"))
    monkeypatch.setattr(stop_signals, "STOP", StopFlag())
    for command in (["train", "-o", str(tmp_path / "runs")], ["check"], ["find-lr"]):
        with pytest.raises(SystemExit) as ended:
            app.main([command[0], str(tmp_path), "--target", "price", *command[1:]])
        said = capfd.readouterr().err
        assert ended.value.code == 2 and said.count("\n") == 1
        assert f"{split}.csv: expected 5 columns as in training, got all but 'city'. Add these columns" in said


def test_columns_to_ignore_are_not_looked_at(tmp_path):
    frame = homes(40).assign(nested=[{"a": 1}] * 40, lists=[[[1]]] * 40, plain=[[1, 2]] * 40)
    frame.to_parquet(tmp_path / "homes.parquet")
    for data in (tmp_path / "homes.parquet", frame):
        options = {"target": "dear", "ignore": "price,nested,lists,plain"}
        run = quick(data, tmp_path / "runs", epochs=1, **options)
        assert {column.name for column in run.network().spec.columns} == {"size", "city", "garden", "built"}
        assert "nested (--ignore)" in str(sw.check(data, **options))
        assert len(sw.predict(run.path, data)) == sw.evaluate(run.path, data).count == 40
        with pytest.raises(InputError, match="column 'nested': expected strings or numbers, got a dict. Split it into"):
            quick(data, tmp_path / "runs", target="dear", ignore="price")


def test_a_table_that_does_not_exist_is_named_with_names_near_it(dear, home, tmp_path):
    near = str(home).replace("homes.csv", "home.csv")
    text = r"cannot find .*home.csv: expected an existing file, got a path that does not exist \(did you mean homes.csv"
    for call in (
        lambda: quick(near, tmp_path, target="price"),
        lambda: sw.check(near, target="price"),
        lambda: sw.predict(dear.path, near),
        lambda: sw.evaluate(dear.path, near),
        lambda: sw.load(dear.path).predict(near),
    ):
        with pytest.raises(InputError, match=text):
            call()
    with pytest.raises(InputError, match="cannot find no/such.parquet: expected an existing file, got a path that"):
        quick("no/such.parquet", tmp_path, target="price")


def test_huge_whole_numbers_are_an_error_of_their_row(dear, home):
    frame = pd.read_csv(home).astype({"size": object})
    frame.loc[:1, "size"] = [10**30, 10**400]
    rows = sw.predict(dear.path, frame)
    assert rows[0].usable and rows[1].reason == "column 'size': expected a finite number up to 1e+300, got 'inf'"
    with pytest.raises(InputError, match="cannot use row 1, column 'size': expected a finite number up to 1e.300"):
        sw.evaluate(dear.path, frame)
    with pytest.raises(InputError, match=r"cannot use the matrix: expected numbers up to 1e\+300, got other values"):
        sw.predict(dear.path, np.array([[10**400, 1]], object))


def test_check_takes_the_column_options_of_training(home, monkeypatch, capfd):
    monkeypatch.setattr(stop_signals, "STOP", StopFlag())
    assert set(ColumnRoles.__dataclass_fields__) <= set(CHECK_OPTIONS)
    assert set(CHECK_OPTIONS) - set(READ_OPTIONS) == set(COLUMN_OPTIONS), "a trained model knows its columns"
    with pytest.raises(SystemExit) as ended:
        app.main(["check", str(home), "--target", "dear", "--ignore", "price,built", "--task", "classification"])
    out = capfd.readouterr().out
    assert not ended.value.code and "class cheap: 60 rows" in out
    assert "unused columns: 'price (--ignore)', 'built (--ignore)'" in out and "  garden  boolean" in out
    with pytest.raises(SystemExit) as ended:
        app.main(["check", str(home), "--target", "dear", "--missing", "-999,size=0", "--categorical", "built,city"])
    out = capfd.readouterr().out
    assert not ended.value.code and "set by --categorical" in out and "--missing -999: no cell of a used column" in out
