import csv

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import skipway as sw
from skipway.commands.export import export_run
from skipway.commands.grow import grow_run
from skipway.commands.probe import probe_run
from skipway.commands.summary import summarize
from skipway.data.image_tables.read_tables import read_file
from skipway.data.image_tables.unlabeled_images import unlabeled_images
from skipway.errors import InputError
from skipway.runs.train_run import train

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Dark and bright images whose class is that of the brightness for kind a, and the other one for kind b."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    rows = []
    for i in range(160):
        is_dark, kind = random.integers(0, 2), random.choice(["a", "b"])
        pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8) // (3 if is_dark else 1)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        rows.append((f"{i}.png", kind, round(float(random.normal()), 3), "yes" if is_dark ^ (kind == "a") else "no"))
    with open(folder / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([("file", "kind", "size", "answer"), *rows])
    return folder


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    options = {"model": "resnet20", "target": "answer", "lr": 0.05, "augment": "none", "epochs": 15}
    output = tmp_path_factory.mktemp("runs")
    return sw.train(folder / "labels.csv", features="kind,size", output=output, **options)


def test_a_run_on_images_with_columns_is_trained_evaluated_and_used_by_its_table(run, folder):
    assert run.metrics["val_accuracy"] > 0.85
    evaluation = sw.evaluate(run.path, folder / "labels.csv")
    assert evaluation.count == 160 and evaluation.accuracy > 0.85
    predictions = sw.predict(run.path, folder / "labels.csv")
    answers = pd.read_csv(folder / "labels.csv")["answer"]
    assert np.mean([p.top[0][0] == answer for p, answer in zip(predictions, answers, strict=True)]) > 0.85
    assert predictions[3].source == str(folder / "3.png")
    views = sw.predict(run.path, folder / "labels.csv", tta=True)
    assert len(views) == 160 and all(p.usable for p in views)


def test_odd_cells_of_an_image_are_remarks_on_it(run, folder):
    table = pd.read_csv(folder / "labels.csv").head(2).assign(file=lambda f: str(folder) + "/" + f["file"])
    table.loc[1, "kind"], table.loc[1, "size"] = "c", 1000
    remarks = [prediction.remark for prediction in sw.predict(run.path, table)]
    assert remarks[0] == "" and "column 'kind': 'c' rarely or never seen in training" in remarks[1]
    assert remarks[1].startswith("column 'size': '1000") and "is far outside of the training range" in remarks[1]


@pytest.mark.rendered
def test_a_run_on_images_with_columns_is_probed_grown_exported_and_summarized(run, folder, tmp_path):
    probed = probe_run(run.path, samples=8, points=3)
    assert {plot.name for plot in probed.plots} > {"diagram.svg", "flow.png", "lesion.png", "landscape.png"}
    grown = grow_run(run.path, "resnet32", output=tmp_path)
    assert grown.difference == 0
    assert (
        sw.evaluate(grown.path, folder / "labels.csv").accuracy == sw.evaluate(run.path, folder / "labels.csv").accuracy
    )
    more = train(resume=grown.path, epochs=16)
    assert more.metrics["val_accuracy"] > 0.8
    exported = export_run(run.path, output=tmp_path / "model.onnx")
    assert exported.check.difference < 1e-4 and exported.num_images == 16
    with pytest.raises(
        InputError, match="cannot export to timm: expected a model of images alone, got one with the fe"
    ):
        export_run(run.path, "timm", tmp_path / "timm")
    assert "rows 1x2" in str(summarize(str(run.path)))


@pytest.mark.parametrize("engine", ["torch", "openvino"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_every_engine_predicts_images_with_columns(run, folder, engine, precision):
    expected = sw.predict(run.path, folder / "labels.csv", precision="fp32", engine="torch")
    found = sw.predict(run.path, folder / "labels.csv", precision=precision, engine=engine)
    apart = [abs(dict(a.top)["yes"] - dict(b.top)["yes"]) for a, b in zip(expected, found, strict=True)]
    assert max(apart) < {"fp32": 1e-4, "bf16": 0.1, "int8": 0.3}[precision]


def test_signal_flow_and_recomputation_take_columns(folder, tmp_path):
    options = {"target": "answer", "features": "kind,size", "model": "resnet20", "epochs": 1, "precision": "fp32"}
    watched = sw.train(folder / "labels.csv", output=tmp_path, watch=True, **options)
    assert (watched.path / "flow.json").is_file()
    again = sw.train(folder / "labels.csv", output=tmp_path, recompute="auto", **options)
    states = [sw.load(run.path).state_dict() for run in (watched, again)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_columns_are_not_mixed(folder, tmp_path):
    with pytest.raises(InputError, match="cannot use --mixup or --cutmix with --features: expected images alone"):
        sw.train(folder / "labels.csv", target="answer", features="kind", mixup=0.2, output=tmp_path)


def test_rows_without_an_image_or_with_an_unusable_cell_have_a_reason(run, folder, tmp_path, monkeypatch):
    frame = pd.DataFrame(
        {"file": ["0.png", "none.png", None, "1.png"], "kind": ["a", "a", "a", "z"], "size": ["1", "2", "3", "big"]}
    )
    frame.to_csv(folder / "new.csv", index=False)
    predictions = sw.predict(run.path, folder / "new.csv")
    (folder / "new.csv").unlink()
    assert predictions[0].usable
    assert predictions[1].reason == "no such file (new.csv:3)"
    assert predictions[2].reason == "no name in 'file' (new.csv:4)"
    assert "column 'size': expected a number, got 'big'" in predictions[3].reason
    monkeypatch.chdir(folder)
    assert [p.usable for p in sw.predict(run.path, frame.iloc[:1])] == [True]


def test_images_alone_and_tables_without_their_columns_are_refused(run, folder):
    with pytest.raises(InputError, match="expected a table that names images, with the columns kind, size, got images"):
        sw.predict(run.path, folder / "0.png")
    with pytest.raises(InputError, match="expected a table that names images, with the columns kind, size, got images"):
        sw.predict(run.path, np.zeros((8, 8, 3), np.uint8))
    (folder / "short.csv").write_text("file,kind\n0.png,a\n")
    try:
        with pytest.raises(InputError, match="cannot encode .*short.csv: expected 2 columns as in training, got all b"):
            sw.predict(run.path, folder / "short.csv")
    finally:
        (folder / "short.csv").unlink()


def test_a_model_of_images_predicts_those_that_a_table_names(folder, tmp_path):
    run = sw.train(folder / "labels.csv", target="answer", model="resnet20", epochs=1, augment="none", output=tmp_path)
    by_table = sw.predict(run.path, folder / "labels.csv")
    by_file = sw.predict(run.path, [folder / f"{i}.png" for i in range(160)])
    assert [p.top for p in by_table] == [p.top for p in by_file]
    mixed = sw.predict(run.path, [folder / "labels.csv", folder / "0.png"])
    assert len(mixed) == 161 and mixed[160].top == mixed[0].top
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "numbers.csv").write_text("a,b\n1,2\n3,4\n")
    with pytest.raises(InputError, match="expected a column with names of image files in .*Move the table next to its"):
        sw.predict(run.path, empty / "numbers.csv")


def test_a_name_of_two_files_has_a_reason(tmp_path):
    for name in ("a/x.png", "b/x.png", "y.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / name)
    (tmp_path / "new.csv").write_text("file\nx.png\ny.png\ny.png\n")
    images = unlabeled_images(read_file(tmp_path / "new.csv"), tmp_path)
    assert str(images[0].content) == "several files of this name (new.csv:2)"
    assert [image.name for image in images[1:]] == [str(tmp_path / "y.png")] * 2


def test_a_parquet_file_of_images_is_refused_with_what_reads_it(folder, tmp_path):
    image = {"bytes": (folder / "0.png").read_bytes(), "path": None}
    pd.DataFrame({"image": [image], "label": [0]}).to_parquet(tmp_path / "images.parquet")
    model = sw.create_model("resnet20", 2)
    model.spec = sw.Spec(3, 8, 8, (0.5,) * 3, (0.25,) * 3, ("no", "yes"))
    with pytest.raises(InputError, match="expected image files or a table that names them, got a Parquet file of"):
        sw.predict(model, tmp_path / "images.parquet")
