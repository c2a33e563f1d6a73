import csv
import errno
import json
import re
import shutil

import pytest
import yaml
from fabricated_runs import HOSTILE, Page, run_folder, table
from PIL import Image

from skipway.errors import InputError, StorageError, printable
from skipway.report import html
from skipway.utils.uncertainty import wilson_interval

CSP = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = run_folder(tmp_path_factory.mktemp("runs") / "digits-resnet20", skipped=130)
    return folder, Page(html.write(folder))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    folder = run_folder(
        tmp_path_factory.mktemp("runs") / "hostile", num_classes=120, epochs=300, hostile=True, skipped=20
    )
    return folder, Page(html.write(folder))


def shown(share, digits=1):
    return f"{share * 100:.{digits}f}%"


def test_the_report_is_next_to_the_results_and_leaves_no_other_files(finished):
    folder, page = finished
    assert (folder / "report.html").exists()
    assert {p.name for p in (folder / "plots").glob("*.png")} == {
        "curves.png",
        "confusion_matrix.png",
        "schedule.png",
        "classes.png",
    }
    assert not [p for p in folder.rglob(".*")]


def test_the_page_forbids_all_but_inline_images_and_styles(finished, hostile):
    for folder, page in (finished, hostile):
        policies = [m for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
        assert [m["content"] for m in policies] == [CSP]
        tags = {tag for tag, _ in page.tags}
        assert (
            not {"script", "link", "iframe", "object", "embed", "form", "base", "image", "use", "foreignobject"} & tags
        )
        for _, attributes in page.tags:
            assert not [name for name in attributes if name.startswith("on")]
            for name in ("src", "srcset", "action", "data", "poster", "xlink:href"):
                assert re.match(r"data:image/(png|jpeg);base64,", attributes.get(name, "data:image/png;base64,"))
        targets = {attributes.get("id") for _, attributes in page.tags}
        for attributes in page.all("a"):
            assert attributes["href"] in html.LINKS or attributes["href"].removeprefix("#") in targets
            assert attributes["href"].startswith("#") or (folder / attributes["href"]).is_file()
        source = (folder / "report.html").read_text(encoding="utf-8")
        assert not re.search(r"https?://|url\(|@import", source)


def test_the_page_has_one_heading_a_language_and_a_text_for_every_image(finished):
    _, page = finished
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == 1 and len(page.all("h2")) >= 7
    assert len(page.all("img")) == 12 and len(page.all("svg")) == 6
    assert all(image["alt"].strip() for image in page.all("img"))
    assert all(drawing["role"] == "img" and drawing["aria-label"].strip() for drawing in page.all("svg"))


def test_the_headline_numbers_equal_those_of_metrics_json(finished):
    folder, page = finished
    metrics = json.loads((folder / "metrics.json").read_text())
    assert [float(v) for v in page.values[:2]] == [metrics["val_accuracy"], metrics["test_accuracy"]]
    for split in ("val", "test"):
        count = metrics["data"]["counts"][split]
        low, high = wilson_interval(metrics[f"{split}_accuracy"], count)
        assert shown(metrics[f"{split}_accuracy"]) in page.text
        assert f"95% interval {shown(low)} to {shown(high)}, on {count:,} images." in page.text
    for text in ("39.0 s", "412 images/s", "272,474", "shift 4 px, flip", "75 x 56 to 4000 x 3000", "1:7"):
        assert text in page.text


def test_every_class_is_in_the_table_with_its_numbers_the_weakest_first(hostile):
    folder, page = hostile
    with (folder / "per_class.csv").open(errors="surrogateescape", newline="") as file:
        wanted = sorted(csv.DictReader(file), key=lambda row: float(row["f1"]))
    rows = [
        [printable(r["class"]), r["count"], *(shown(float(r[k])) for k in ("precision", "recall", "f1"))]
        for r in wanted
    ]
    found = [row for row in page.rows if len(row) == 5 and row[0] != "Class"]
    assert found == rows and len(rows) == 120
    assert "The other 100 classes" in page.text


def test_the_most_confused_pairs_are_those_of_the_matrix(finished):
    folder, page = finished
    with (folder / "confusion_matrix.csv").open(newline="") as file:
        head, *body = list(csv.reader(file))
    counts = {(r[0], c): int(v) for r in body for c, v in zip(head[1:], r[1:], strict=True) if r[0] != c and int(v)}
    pairs = [row for row in page.rows if len(row) == 4 and row[0] in head and row[1] in head]
    assert len(pairs) == 10
    assert [int(row[2]) for row in pairs] == sorted(counts.values(), reverse=True)[:10]
    assert all(counts[row[0], row[1]] == int(row[2]) for row in pairs)


def test_skipped_files_are_listed_up_to_fifty_and_the_rest_is_counted(finished):
    _, page = finished
    assert len([row for row in page.rows if len(row) == 4 and row[3] == "truncated: 12 of 80 bytes"]) == 50
    assert "And 80 more, in skipped.csv." in page.text


def test_the_recipe_the_network_and_the_commands_are_there(finished):
    folder, page = finished
    fields = {row[0]: row[1] for row in page.rows if len(row) == 2}
    recipe = yaml.safe_load((folder / "config.yaml").read_text())
    assert recipe.pop("schema") == 1
    assert {k: fields[k] for k in recipe} == {k: "not set" if v is None else str(v) for k, v in recipe.items()}
    assert fields["torch"] == "2.13.0+cpu" and "command" not in fields
    assert page.text.count("(block") == 20 and "skipway train digits --seed 1" in page.text
    assert "skipway train --config config.yaml" in page.text


def test_hostile_names_are_shown_as_text(hostile):
    folder, page = hostile
    for name in HOSTILE:
        assert printable(name) in page.text or printable(name)[:20] in page.text, name
    cells = {cell for row in page.rows for cell in row}
    assert {printable(name) for name in HOSTILE} <= cells
    source = (folder / "report.html").read_bytes()
    assert b"<img src=x" not in source and b"\x1b" not in source and "\u200f".encode() not in source
    assert source.decode("utf-8").count("</pre>") == len(page.all("pre"))


def test_a_typical_report_stays_small(finished, hostile):
    assert (finished[0] / "report.html").stat().st_size < 150_000
    assert (hostile[0] / "report.html").stat().st_size < 400_000


def test_large_images_are_made_small_and_small_ones_keep_their_pixels(tmp_path):
    folder = run_folder(tmp_path / "run", num_classes=2, side=300)
    Image.new("L", (8, 8), 90).save(folder / "plots" / "worst" / "0.png")
    images = [i for i in Page(html.write(folder)).all("img") if "predicted" in i["alt"]]
    assert (images[0]["width"], images[0].get("class")) == ("8", "pixels")
    assert images[0]["src"].startswith("data:image/png") and images[1]["src"].startswith("data:image/jpeg")
    assert max(int(i["width"]) for i in images) == 256


def test_an_image_outside_the_folder_of_worst_images_is_not_embedded(tmp_path):
    folder = run_folder(tmp_path / "run", num_classes=2)
    Image.new("L", (8, 8)).save(tmp_path / "secret.png")
    rows = [[name, "a.png", "cat", "dog", 0.9, 0.1] for name in ("../../../secret.png", "..", "a\0b", "", "1.png")]
    table(
        folder / "plots" / "worst.csv",
        rows,
        ["image", "file", "label", "predicted", "probability", "label_probability"],
    )
    images = [i for i in Page(html.write(folder)).all("img") if "predicted" in i["alt"]]
    assert [i["width"] for i in images] == ["32"]


def test_figures_of_other_parts_are_shown_too(tmp_path):
    folder = run_folder(tmp_path / "run", num_classes=2)
    Image.new("RGB", (3000, 600)).save(folder / "plots" / "depth_profile.png")
    Image.new("RGB", (300, 200)).save(folder / "plots" / "augmented.png")
    (folder / "plots" / "broken.png").write_bytes(b"not an image")
    page = Page(html.write(folder))
    assert "Depth profile" in page.text and "Broken" not in page.text and "Augmented training images" in page.text
    assert [i["width"] for i in page.all("img") if i["alt"] == "depth_profile"] == ["960"]


def test_a_second_report_shows_what_changed(tmp_path):
    folder = run_folder(tmp_path / "run", num_classes=2, epochs=2)
    first = html.write(folder).read_text(encoding="utf-8")
    assert html.write(folder).read_text(encoding="utf-8") == first
    run_folder(folder, num_classes=2, epochs=3)
    assert html.write(folder).read_text(encoding="utf-8") != first


@pytest.mark.parametrize(
    "name", ["metrics.json", "config.yaml", "env.json", "per_class.csv", "confusion_matrix.csv", "skipped.csv"]
)
@pytest.mark.parametrize("state", ["gone", "broken"])
def test_a_missing_or_broken_file_is_named_in_its_section(tmp_path, name, state):
    folder = run_folder(tmp_path / "run", num_classes=2, epochs=2, skipped=0)
    (folder / name).unlink()
    if state == "broken":
        (folder / name).mkdir() if name.endswith("csv") else (folder / name).write_text("{: [")
    page = Page(html.write(folder))
    assert (f"This run has no {name}." if state == "gone" else f"This run's {name} cannot be read") in page.text


def test_an_interrupted_run_says_so_and_reports_its_best_epoch(tmp_path):
    folder = run_folder(tmp_path / "run", num_classes=2, epochs=4, metrics=False)
    for name in ("config.yaml", "env.json", "per_class.csv", "confusion_matrix.csv", "predictions.csv", "skipped.csv"):
        (folder / name).unlink()
    shutil.rmtree(folder / "plots")
    with (folder / "results.csv").open("a") as file:
        file.write("5,3.2")  # torn by the interruption
    page = Page(html.write(folder))
    assert "It was interrupted or has not ended" in page.text and "Validation accuracy so far" in page.text
    assert "The counts below come from splits.csv." in page.text and "no images in plots/worst" in page.text
    with (folder / "results.csv").open() as file:
        best = max(float(row["val_accuracy"]) for row in csv.DictReader(file) if row["val_accuracy"])
    assert float(page.values[0]) == best


@pytest.mark.parametrize("text", ["", "epoch,seconds,lr,train_loss\n"])
def test_a_run_without_a_finished_epoch_still_has_a_report(tmp_path, text):
    (tmp_path / "results.csv").write_text(text)
    page = Page(html.write(tmp_path))
    assert "No epoch was finished" in page.text and "No finished epoch measured it" in page.text


def test_a_matrix_that_is_not_square_is_reported_as_unreadable(tmp_path):
    folder = run_folder(tmp_path / "run", num_classes=2)
    for text in ("true,a,b\na,1,2\n", "true,a,b\na,1,2\nb,3,x\n", "", "true,a\na,nan\n"):
        (folder / "confusion_matrix.csv").write_text(text)
        assert "This run's confusion_matrix.csv cannot be read (ValueError)." in Page(html.write(folder)).text


def test_metrics_of_the_wrong_kind_do_not_stop_the_report(tmp_path):
    folder = run_folder(tmp_path / "run", num_classes=2)
    for metrics in (
        [1],
        {
            "schema": 1,
            "val_accuracy": "high",
            "data": {"warnings": 3, "notes": [], "counts": 1},
            "seconds": None,
            "schedule": 3,
            "best_epoch": "x",
        },
    ):
        (folder / "metrics.json").write_text(json.dumps(metrics))
        assert "digits" in Page(html.write(folder)).text


def test_a_folder_without_results_is_not_a_run_folder(tmp_path):
    fix = "Pass a folder that `skipway train` wrote."
    with pytest.raises(InputError, match="cannot read results.csv of the run folder .*: No such file") as error:
        html.write(tmp_path)
    assert str(error.value).endswith(fix) and "\n" not in str(error.value)
    (tmp_path / "results.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="expected a column 'epoch', got a, b. Pass a folder"):
        html.write(tmp_path)
    with pytest.raises(InputError, match="cannot read results.csv"):
        html.write(tmp_path / "results.csv")
    with pytest.raises(InputError, match=r"the run folder .*\\x1b\[2J: No such"):
        html.write(tmp_path / "\x1b[2J")


def test_a_report_that_cannot_be_written_is_a_storage_error_and_leaves_the_old_one(tmp_path):
    folder = run_folder(tmp_path / "run", num_classes=2)
    (folder / "report.html").mkdir()
    with pytest.raises(StorageError, match="cannot write .*report.html: Is a directory"):
        html.write(folder)
    assert not list(folder.glob(".tmp-*"))


def test_a_disk_that_is_full_while_drawing_is_a_storage_error(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(html, "_draw", full)
    expected = "report.html: No space left on device. Check that the folder is writable and has free space."
    with pytest.raises(StorageError, match=f"cannot write .*{expected}"):
        html.write(run_folder(tmp_path / "run", num_classes=2))


def captions(folder):
    """The two lines of every figure's caption."""
    source = (folder / "report.html").read_text(encoding="utf-8")
    figures = re.findall(r'<figure class="figure">(.*?)</figure>', source, re.S)
    lines = [re.findall(r"<span>(.*?)</span>", figure.partition("<figcaption>")[2], re.S) for figure in figures]
    return [[re.sub(r"<[^>]+>", "", line).strip() for line in caption] for caption in lines]


def test_every_figure_has_a_caption_of_two_lines(finished, hostile):
    for folder, _ in (finished, hostile):
        found = captions(folder)
        assert len(found) == 5
        assert all(len(caption) == 2 and all(caption) for caption in found)
        assert all(caption[1].startswith("This run: ") for caption in found)


def test_the_sections_have_the_headings_of_the_field_and_are_linked(finished):
    source = (finished[0] / "report.html").read_text(encoding="utf-8")
    headings = re.findall(r'<section id="(\w+)"><h2>([^<]+)</h2>', source)
    assert [heading for _, heading in headings] == [
        "Metrics",
        "Training curves",
        "Confusion matrix",
        "Per-class metrics",
        "Highest-loss images",
        "Data",
        "LR schedule and config",
        "Reproduce this run",
    ]
    assert re.findall(r'href="#(\w+)"', source) == [name for name, _ in headings]


def test_the_first_screen_has_references_and_four_checks(finished):
    folder, page = finished
    source = (folder / "report.html").read_text(encoding="utf-8")
    head = source[: source.index("<nav")]
    assert head.count("Majority class (") == 2 and head.count('class="run"') == 2
    assert re.findall(r"<b>(\w+) <em>(pass|warn|not measured)</em>", head) == [
        ("Data", "warn"),
        ("Fit", "pass"),
        ("Calibration", "not measured"),
        ("Speed", "pass"),
    ]
    assert "130 files were skipped; 1 warning is listed under Data." in page.text


def test_diagnostics_are_drawn_from_their_files_and_a_malformed_one_is_left_out(tmp_path):
    folder = run_folder(tmp_path / "run", num_classes=2, hostile=True)
    rows = [{"path": "a", "out": 1.0, "ratio": 0.0, "added": 0.0, "gradient_in": 1e-5}] * 3
    flow = {"blocks": rows, "layers": [{"path": "a", "gradient": 0.1}]}
    for flows, count in (({"before training": flow, "<script>": flow}, 1), ({"x": {"blocks": 3}}, 0), ([1], 0)):
        (folder / "flow.json").write_text(json.dumps({"schema": 1, "flows": flows}))
        page = Page(html.write(folder))
        assert page.text.count("Signal flow over training") == count and not page.all("script")
        if count:
            assert "Before training: 3 of 3 branches add exactly zero, as zero initialization intends." in page.text
    (folder / "flow.json").write_text("{")
    assert "Signal flow" not in Page(html.write(folder)).text


def test_chance_on_four_images_is_not_headlined_as_a_success(tmp_path):
    folder = run_folder(tmp_path / "run", num_classes=2, test=False)
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["val_accuracy"] = 1.0
    metrics["data"]["counts"]["val"] = 4
    (folder / "metrics.json").write_text(json.dumps(metrics))
    page = Page(html.write(folder))
    assert [tag["class"] for tag in page.all("div") if tag.get("class", "").startswith("first")] == ["first weak"]
    assert "this is not clearly better than a constant prediction" in page.text
    assert "95% interval 51.0% to 100.0%, on 4 images." in page.text
    style = (folder / "report.html").read_text(encoding="utf-8")
    assert style.index(".first .big {") < style.index(".weak .big { color: var(--muted)")
