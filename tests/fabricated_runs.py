"""Run folders as `skipway train` leaves them, made up: small and large, tame and hostile, whole and interrupted."""

import csv
import json
import math
from html.parser import HTMLParser

import numpy as np
import yaml
from PIL import Image

HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "=cmd()",
    "\x1b[2J",
    "two\nlines",
    "$\\frac{",
    "\U0001f600 cat",
    "ab\u200fcd",
    "long" * 63 + "end",
    "\udcff",
    "猫",
    "</pre></details><b>",
    "{{ 7*7 }}",
    "\"quoted'",
    "../../x",
    "$a$",
]
LAYER = "Conv2d(64, 64, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)"
WORDS = (
    "tench",
    "English springer",
    "cassette player",
    "chain saw",
    "church",
    "French horn",
    "garbage truck",
    "petrol pump",
)


def table(path, rows, columns=None):
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns or list(rows[0]))
        writer.writerows(row.values() if isinstance(row, dict) else row for row in rows)


def class_names(num_classes, hostile):
    names = [str(n) for n in range(10)] if num_classes == 10 else ["cat", "dog"] if num_classes == 2 else []
    names = names or [f"{WORDS[n % len(WORDS)]} {n}" for n in range(num_classes)]
    return [*HOSTILE, *names][:num_classes] if hostile else names


def run_folder(
    folder, num_classes=10, epochs=12, test=True, skipped=3, metrics=True, hostile=False, gap=0.03, side=32
):  # one run, as `skipway train` leaves it
    rng = np.random.default_rng(num_classes + epochs)
    folder.mkdir(parents=True, exist_ok=True)
    names = class_names(num_classes, hostile)
    decay = [math.exp(-5 * e / max(epochs - 1, 3)) for e in range(epochs)]
    history = [
        {
            "epoch": e + 1,
            "seconds": 3.25,
            "lr": 0.1 * (1 - e / epochs),
            "train_loss": 0.05 + 2 * d,
            "train_accuracy": 0.985 - 0.8 * d,
            "val_loss": 0.1 + 4 * gap + 2 * d + 0.01 * rng.random(),
            "val_accuracy": 0.985 - gap - 0.8 * d - 0.004 * rng.random(),
            "samples_per_second": 412.5,
            "data_time_fraction": 0.04,
        }
        for e, d in enumerate(decay)
    ]
    table(folder / "results.csv", history)
    recipe = {
        "schema": 1,
        "data": "data/" + HOSTILE[0] if hostile else "digits",
        "model": "resnet20",
        "epochs": epochs,
        "batch_size": 64,
        "lr": 0.1,
        "seed": 1,
        "name": HOSTILE[2] if hostile else None,
        "augment": "auto",
        "weight_decay": 0.0005,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    per = {name: {"train": int(rng.integers(90, 700)), "val": 36, **({"test": 30} if test else {})} for name in names}
    matrix = np.diag(rng.integers(24, 35, num_classes)) + rng.multinomial(
        40, [1 / num_classes**2] * num_classes**2
    ).reshape(num_classes, num_classes)
    split = "test" if test else "val"
    for name, total in zip(names, matrix.sum(1).tolist(), strict=True):
        per[name][split] = total
    table(
        folder / "confusion_matrix.csv",
        [[n, *r] for n, r in zip(names, matrix.tolist(), strict=True)],
        ["true", *names],
    )
    right, given, called = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    rows = [
        {"class": n, "count": c, "precision": a / q, "recall": a / c, "f1": 2 * a / (c + q)}
        for n, a, c, q in zip(names, right, given, called, strict=True)
    ]
    table(folder / "per_class.csv", rows)
    table(
        folder / "predictions.csv",
        [["a.png", split, names[0], names[1], 0.9, 0.05, 3.0]],
        ["file", "split", "label", "predicted", "probability", "label_probability", "loss"],
    )
    table(
        folder / "splits.csv",
        [[f"{n}{i}.png", n, s, "0" * 64] for n in names for s in per[n] for i in range(3)],
        ["file", "class", "split", "sha256"],
    )
    table(
        folder / "skipped.csv",
        [
            [f"{HOSTILE[i % 9] if hostile else 'bad'}/{i}.jpg", "train", names[0], "truncated: 12 of 80 bytes"]
            for i in range(skipped)
        ],
        ["file", "split", "class", "reason"],
    )
    env = {
        "schema": 1,
        "skipway": "0.1.0",
        "python": "3.11.9",
        "torch": "2.13.0+cpu",
        "platform": "Linux-6.1-x86_64",
        "cpu": "Xeon",
        "threads": 2,
        "device": "cpu",
        "precision": "bf16",
        "git": None,
        "command": "skipway train " + ("'" + HOSTILE[0] + "'" if hostile else "digits --seed 1"),
        "network": "\n".join(f"  (block{i}): Skip(body=Chain({LAYER}, ReLU(), {LAYER}), join=add)" for i in range(20)),
    }
    (folder / "env.json").write_text(json.dumps(env))
    worst_images(folder, names, rng, side, hostile)
    if metrics:
        counts = {s: sum(row[s] for row in per.values()) for s in next(iter(per.values()))}
        best = max(history, key=lambda row: row["val_accuracy"])
        numbers = {
            "schema": 1,
            "val_accuracy": best["val_accuracy"],
            "val_loss": best["val_loss"],
            "epochs": epochs,
            "best_epoch": best["epoch"],
            "seconds": 3.25 * epochs,
            "samples_per_second": 412.5,
            "status": "finished",
            "parameters": 272474,
            "augmentation": "shift 4 px, flip",
            "schedule": [[i / 99, 0.1 * (1 - i / 99), 0.9] for i in range(100)],
            "data": {
                "name": "digits",
                "counts": counts,
                "classes": per,
                "skipped": skipped,
                "notes": {"turned by its EXIF orientation": 12, "made grey from color": 3},
                "warnings": ["classes are imbalanced 1:7: the rarest has 90", *(HOSTILE[:1] if hostile else [])],
                "sizes": "75 x 56 to 4000 x 3000, median 500 x 375",
            },
        }
        if test:
            numbers |= {"test_accuracy": right.sum() / matrix.sum(), "test_loss": 0.211}
        (folder / "metrics.json").write_text(json.dumps(numbers))
    return folder


def worst_images(folder, names, rng, side, hostile):
    (folder / "plots" / "worst").mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(12):
        high, wide = (side, side) if i % 3 else (side, max(8, side * 2 // 3))
        y, x = np.mgrid[:high, :wide] / side
        waves = [np.sin(x * rng.uniform(3, 16) + y * rng.uniform(3, 16) + rng.uniform(0, 6)) for _ in range(3)]
        pixels = np.stack(waves, -1) * 110 + 128 + rng.normal(0, 4, (high, wide, 3))
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        (image.convert("L") if i % 2 else image).save(folder / "plots" / "worst" / f"{i}.png")
        file = HOSTILE[i % len(HOSTILE)] if hostile else f"val/{names[i % len(names)]}/ILSVRC2012_val_0000{i:04d}.JPEG"
        rows.append([f"{i}.png", file, names[i % len(names)], names[-1 - i % len(names)], 0.97 - i / 50, 0.004])
    columns = ["image", "file", "label", "predicted", "probability", "label_probability"]
    table(folder / "plots" / "worst.csv", rows, columns)


class Page(HTMLParser):
    """Every tag with its attributes, the text, and the cells of each table."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.text, self.rows, self.values = [], "", [], []
        self._cell = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self._cell = tag in ("td", "th") or (self._cell and tag not in ("table", "p"))
        if tag == "data":
            self.values.append(dict(attrs)["value"])

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data):
        self.text += data
        if self._cell and self.rows:
            self.rows[-1][-1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]
