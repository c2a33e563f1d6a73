"""The options of training, by the same names on the command line, in Python and in config.yaml."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from small_runs import QUICK, best, image_folder, quick, same_tensors

from skipway.cli.app import app
from skipway.cli.train_options import train
from skipway.distributed import launch
from skipway.errors import InputError
from skipway.report import html
from skipway.runs.recipe import Recipe

ROOT = Path(__file__).parents[2]
OPTIONS = {
    "layer_decay": 0.9,
    "bias_lr_mult": 2.0,
    "freeze_epochs": 1,
    "clip_grad": 1.0,
    "grad_accum_steps": 2,
    "resize_mode": "pad",
    "max_unreadable": 0.1,
    "allow_empty_classes": True,
    "augment": "flip+color",
}
FORMER = {
    "lr_decay": 0.9,
    "bias_lr": 2.0,
    "freeze": 1,
    "clip": 1.0,
    "accumulate": 2,
    "fit": "pad",
    "shard": True,
    "max_bad": 0.1,
    "allow_empty": True,
}


def flag(name):
    return "--" + name.replace("_", "-")


def words_of(options):
    words = []
    for name, value in options.items():
        words += [flag(name)] if value is True else [flag(name), str(value)]
    return words


def test_every_option_has_one_name_everywhere(tmp_path, monkeypatch):
    monkeypatch.setattr(html, "write", lambda folder: folder / "report.html")
    monkeypatch.chdir(tmp_path)
    image_folder(tmp_path / "kinds", 8)
    (tmp_path / "kinds" / "none").mkdir()
    run = quick("kinds", "python", name="run", **OPTIONS).path
    app(["train", "kinds", *words_of(QUICK | OPTIONS), "-o", "shell", "--name", "run"], result_action="return_value")
    assert same_tensors(best(run), best(tmp_path / "shell" / "run"))
    config = yaml.safe_load((tmp_path / "shell" / "run" / "config.yaml").read_text())
    assert {name: config[name] for name in OPTIONS} == OPTIONS
    assert config["output"] == "shell"


def test_fsdp_is_an_option_too(tmp_path):
    with pytest.raises(InputError, match="cannot use --fsdp: expected several processes, got one"):
        app(["train", "wine", "--fsdp", "-o", str(tmp_path)], result_action="return_value")


def test_former_names_are_gone(capsys):
    for name, value in FORMER.items():
        with pytest.raises(InputError, match=f"unknown option '{name}'"):
            Recipe.of({name: value})
        with pytest.raises(SystemExit):
            app(["train", "wine", *words_of({name: value})], result_action="return_value")
        assert flag(name) in capsys.readouterr().err


def test_no_page_and_no_benchmark_names_a_former_option():
    pages = [ROOT / "README.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.py")]
    names = re.compile("|".join(rf"(?<![\w-]){flag(name)}(?![\w-])" for name in FORMER))
    assert not [page.name for page in pages if names.search(page.read_text())]


def test_more_processes_than_devices_are_refused_before_they_start(tmp_path, monkeypatch):
    started = []
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(launch, "launch", lambda count, words, **how: started.append((count, how)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    (tmp_path / "cpu").mkdir()
    for path in ("cpu.yaml", "cpu/config.yaml"):
        (tmp_path / path).write_text("device: cpu")
    train("digits", nproc=3, config=tmp_path / "cpu.yaml")
    train("digits", nproc=2, quiet=True)
    train(resume=tmp_path / "cpu", nproc=2)
    assert started == [
        (3, {"quiet": False, "resumes": False}),
        (2, {"quiet": True, "resumes": False}),
        (2, {"quiet": False, "resumes": True}),
    ]
    with pytest.raises(InputError, match="cannot train in 3 processes on cuda: .* which are 2 here. Use --nproc 2"):
        train("digits", nproc=3)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("device: cuda:1")
    with pytest.raises(InputError, match="cannot train in 2 processes on cuda:1: expected a kind of device"):
        train(resume=run, nproc=2)
