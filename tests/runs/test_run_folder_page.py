"""`docs/reference/run-folder.md` names every file and key that runs write, with its type, and nothing else."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from many_targets import label_source, number_source
from PIL import Image
from safetensors import safe_open
from small_runs import image_folder, quick
from table_files import homes, written

from skipway.commands.export import export_run
from skipway.commands.probe import probe_run
from skipway.errors import SkipwayError
from skipway.export.onnx_file import Exported
from skipway.models.registry import FAMILIES
from skipway.report import html
from skipway.runs import cross_validation, datamodule
from skipway.runs.train_run import train
from skipway.utils.atomic_files import Lock

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "run-folder.md").read_text()
ROW = re.compile(r"^\| (`[^|]+`) \| ([^|]+) \| .* \|$", re.M)
KINDS = ("ant", "bee", "cow", "dog", "eel", "fly")
RUNS = ("image", "grown", "classes", "number", "labels", "many_labels", "image_number", "image_numbers")
TABLE_RUNS = ("row_labels", "row_numbers", "many_row_labels")
SUBMITTED, BLENDED = "submitted", "blended"
GPU_FACTS = ("gpu", "driver", "cudnn", "tf32")  # of runs on CUDA alone
CROSS_VALIDATIONS = ("dear_folds", "price_folds", "label_folds")
TYPES = {
    "integer": int,
    "number": (int, float),
    "text": str,
    "boolean": bool,
    "null": type(None),
    "object": dict,
    "list": list,
}


def headings(text):
    """{heading: {key: type}} of the tables of the page."""
    sections = {}
    for part in re.split(r"^## ", text, flags=re.M)[1:]:
        heading, _, body = part.partition("\n")
        keys = {}
        for names, kind in ROW.findall(body):
            keys |= dict.fromkeys(re.findall(r"`([^`]+)`", names), kind)
        sections[heading] = keys
    return sections


SECTIONS = headings(PAGE)
LINKS = {re.sub(r"[^\w\s-]", "", heading).lower().replace(" ", "-"): heading for heading in SECTIONS}


def matches(documented, key):
    """Whether a key of the page names `key`, a tuple of names; a word in capitals stands for any name."""
    parts = documented.split(".")
    patterns = [re.sub("[A-Z]{3,}", ".+", re.escape(part)) for part in parts]
    return len(parts) == len(key) and all(map(re.fullmatch, patterns, key))


class Checker:
    """Compares written values with the page, and remembers which keys of it were met."""

    def __init__(self):
        self.met = set()
        self.problems = []

    def documented(self, section, key):
        """The type of a key, exact names before those with words in capitals."""
        keys = SECTIONS[section]
        exact = ".".join(key)
        known = exact if exact in keys else next((name for name in keys if matches(name, key)), None)
        if known is None:
            self.problems.append(f"{section}: {exact} is not on the page")
            return ""
        self.met.add((section, known))
        return keys[known]

    def check(self, section, values, above=(), known=()):
        for name, value in values.items():
            if name not in known:
                key = (*above, name)
                kind = self.documented(section, key)
                self.check_type(section, key, kind, value)
                self.check_inside(section, key, kind, value)

    def check_type(self, section, key, kind, value):
        """The value has one of the types that "integer or null, seconds" names."""
        if not kind:
            return
        plain = re.sub(r"\[[^]]+\]\(#[^)]+\)", "object", kind.partition(",")[0])
        types = [TYPES[words.split()[0]] for words in plain.split(" or ") if words.split()[0] in TYPES]
        is_flag = isinstance(value, bool) and bool not in types
        if is_flag or not any(isinstance(value, each) for each in types):
            self.problems.append(f"{section}: {'.'.join(key)} is {kind}, not {value!r}")

    def check_inside(self, section, key, kind, value):
        rows = value if isinstance(value, list) else [value]
        links = [LINKS[link] for link in re.findall(r"\(#([^)]+)\)", kind)]
        for row in (row for row in rows if isinstance(row, dict)):
            if len(links) > 1:
                self.check(links["columns" in row], row)
            elif links:
                self.check(links[0], row)
            else:
                self.check(section, row, (*key[:-1], key[-1] + "[]") if isinstance(value, list) else key)

    def check_table(self, section, path):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                self.check(section, {name: self.parsed(section, name, cell) for name, cell in row.items()})

    def parsed(self, section, name, cell):
        """A cell as the number that its column is documented to have, if it is one."""
        kind = self.documented(section, (name,))
        try:
            return {"integer": int, "number": float}.get(kind.partition(",")[0].split(" or ")[-1], str)(cell)
        except ValueError:
            return cell


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs that write all there is: on images and tables, watched, probed, exported, grown, and one that crashes."""
    base = tmp_path_factory.mktemp("schema")
    images = image_folder(base / "kinds", 4, ("train", "val", "test"), kinds=KINDS)
    (images / "train" / "ant" / "torn.png").write_bytes(b"torn")
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8)).save(images / "train" / "ant" / "deep.png")
    table = base / "homes"
    table.mkdir()
    for i, split in enumerate(("train", "val", "test")):
        frame = homes(40, i)
        frame.loc[0, ["price", "dear"]] = None
        frame["store_id"] = [k % 4 for k in range(40)]
        frame["w"] = [1 + k % 3 for k in range(40)]
        frame["cost"] = [f"${1234 * k + 0.5:,.1f} m" if k % 9 else f"(${k + 1}.5 m)" for k in range(40)]
        written(table / f"{split}.csv", frame)
    tagged = base / "tagged"
    tagged.mkdir()
    for i, split in enumerate(("train", "val", "test")):
        frame = homes(40, i).drop(columns="dear").assign(rent=lambda f: f["price"] / 9 + f["size"].notna())
        frame["tags"] = np.where(frame["garden"] == "yes", "green|" + frame["city"].fillna("rural"), "")
        written(tagged / f"{split}.csv", frame.assign(**{f"y{k}": np.arange(40) % (k + 2) == 0 for k in range(21)}))
    kaggle = base / "kaggle"
    kaggle.mkdir()
    for split, target in (("train", ["price"]), ("test", ["price", "dear"])):
        written(
            kaggle / f"{split}.csv", homes(40).drop(columns=target).assign(home=[f"{split} {i}" for i in range(40)])
        )
    common = {"output": base, "epochs": 1, "max_unreadable": 0.1}
    grown = {"grow": "resnet20:1,resnet32:1", "model": "auto", "epochs": 2, "balance": "weights"}
    few = {"train": 24, "val": 12, "test": 12}
    sources = {
        "labels": label_source(few),
        "many_labels": label_source(few, more=100),
        "image_number": number_source(few, names=("top",)),
        "image_numbers": number_source(few),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(html, "write", lambda folder: folder / "report.html")
        quick(images, base, name="image", lr="auto", watch=True, max_unreadable=0.1, tta=True)
        quick(images, base, name="grown", max_unreadable=0.1, **grown)
        for name, source in sources.items():
            with pytest.MonkeyPatch.context() as of_source:
                of_source.setattr(datamodule, "open_recipe_data", lambda recipe, source=source: source)
                quick("squares", base, name=name, epochs=1)
        train(table, target="dear", ignore="price", weight_column="w", missing="size=7", name="classes", **common)
        train(kaggle, id="home", name=SUBMITTED, **common)
        train(homes(80), target="price", ignore="dear", ensemble_with="boosting", name=BLENDED, **common)
        many = ",".join(f"y{k}" for k in range(21))
        for name, target, label_sep in zip(TABLE_RUNS, ("tags", "price,rent", many), ("|", None, None), strict=True):
            options = {"target": target, "label_sep": label_sep, "features": "size,city,garden"}
            train(tagged, name=name, **options, **common)
        with pytest.MonkeyPatch.context() as of_source:
            for module in (datamodule, cross_validation):
                of_source.setattr(module, "open_recipe_data", lambda recipe: label_source({"train": 40}))
            quick("squares", base, name="label_folds", folds=2, epochs=1)
        for target, other in (("dear", "price"), ("price", "dear")):
            train(table, target=target, ignore=other, name=f"{target}_folds", folds=2, **common)
        patch.setattr(html, "write", lambda folder: {}["odd"])
        with pytest.raises(SkipwayError, match="KeyError"):
            train(table, target="price", ignore="dear", name="number", **common)
        patch.setattr("skipway.commands.export.program", write_program)
        export_run(base / "classes", "pt2")
    probe_run(base / "image", samples=8, points=3)
    return [base / name for name in (*RUNS, *TABLE_RUNS, SUBMITTED, BLENDED, *CROSS_VALIDATIONS)]


def write_program(network, path, **options):
    """Writes nothing but the file."""
    path.write_bytes(b"")
    return Exported(path, size=0, difference=0.0)


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_every_file_of_a_run_is_on_the_page_and_the_reverse(runs):
    with Lock(runs[0]):
        names = {name for folder in runs for name in files(folder) if not name.startswith("fold-")}
    documented = SECTIONS["Files"]
    patterns = {known: re.sub("RANK|STEP|NAME", ".+", re.escape(known)) for known in documented}
    met = {name: [known for known, pattern in patterns.items() if re.fullmatch(pattern, name)] for name in names}
    assert not [name for name, known in met.items() if not known]
    assert not set(documented) - {known for known_names in met.values() for known in known_names}


def check_run(checker, folder):
    """Compare every file of a run with its section."""
    is_run = folder.name not in CROSS_VALIDATIONS
    for path in sorted(folder.rglob("*.json") if is_run else folder.glob("*.json")):
        section = f"weights/last/{path.name}" if path.parent.name.startswith("step-") else path.name
        values = json.loads(path.read_text())
        if section == "metrics.json":
            checker.check("Settings", values["resolved"], known=("batch_size", "model", "compile"))
            values["resolved"] = {name: values["resolved"][name] for name in ("batch_size", "model", "compile")}
        if section == "weights/last/state.json":
            checker.check("config.yaml", values.pop("recipe"))
            checker.check("Settings", values.pop("settings"))
            checker.met |= {(section, "recipe"), (section, "settings")}
        if section == "encoders.json":
            checker.documented(section, ("schema",))
            checker.check("Spec of a table", values, known=("schema",))
            continue
        checker.check(section, values)
    for path in [*folder.glob("*.csv"), *folder.glob("plots/*.csv")]:
        checker.check_table(str(path.relative_to(folder)), path)
    checker.check("config.yaml", yaml.safe_load((folder / "config.yaml").read_text()))
    if not is_run:
        return
    if (columns := folder / "columns.yaml").exists():
        checker.check("columns.yaml", yaml.safe_load(columns.read_text()))
    with safe_open(folder / "weights" / "best.safetensors", "pt") as file:
        header = dict(file.metadata())
    for name in ("skipway", "written_by"):
        header[name] = json.loads(header[name])
    checker.check("weights/best.safetensors", header)


def test_every_key_of_a_run_is_on_the_page_with_its_type_and_the_reverse(runs):
    checker = Checker()
    for folder in runs:
        check_run(checker, folder)
    for family, kinds in FAMILIES.items():
        checker.check("Plan", {"name": family, "family": family, **kinds.plan().as_dict()})
    assert not sorted(set(checker.problems))
    keys = {(section, key) for section, keys in SECTIONS.items() if section != "Files" for key in keys}
    on_a_gpu = {(file, key) for file in ("env.json", "weights/last/state.json") for key in GPU_FACTS}
    assert not sorted(keys - checker.met - on_a_gpu), "keys that no run writes"


def test_the_check_bites():
    checker = Checker()
    checker.check("env.json", {"schema": "1", "gpu": 3, "threads": True})
    assert len(checker.problems) == 3
    checker.check("Flow", {"blocks": [{"path": "stem", "speed": 1.0}]})
    assert checker.problems[-1] == "Flow: blocks[].speed is not on the page"
