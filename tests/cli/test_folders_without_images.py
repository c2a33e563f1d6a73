"""Folders in which there is nothing to learn from or to predict: one line and exit code 2, in every command."""

import pytest
from small_runs import image_folder, quick

from skipway.cli import app
from skipway.report import html
from skipway.utils import stop_signals
from skipway.utils.stop_signals import StopFlag

COMMANDS = {
    "train": ["train", "{}", "--model", "resnet20", "-o", "out", "--quiet"],
    "folds": ["train", "{}", "--folds", "2", "-o", "out", "--quiet"],
    "find-lr": ["find-lr", "{}", "--quiet"],
    "predict": ["predict", "runs/run", "{}"],
    "evaluate": ["evaluate", "runs/run", "{}"],
    "probe": ["probe", "runs/run", "--only", "flow", "--data", "{}"],
    "compare": ["compare", "runs/run", "{}"],
}
# Files of each folder, and what the error says besides its name.
FOLDERS = {
    "empty": ((), ("holds no", "got no images. Put")),
    "text": (("a.txt", "b.md"), ("1 .txt file (text), 1 .md file (text)). P",)),
    "films": (("ant/a.mp4", "bee/b.MP4"), ("files: 1 .mp4 file (video", "files: 2 .mp4 files (video")),
    "classes": (("ant/", "bee/"), ("found none in 'ant'", "holds no image")),
    "splits": (("train/", "val/"), ("splits/train: expected at least", "holds no image")),
    "broken": (("ant/1.png", "ant/2.png", "bee/3.png"), ("3 of 3 images", "cannot evaluate broken: expected")),
    "deep": (("a/b/c/1.png", "a/d/c/2.png"), ("2 of 2 images", "cannot evaluate deep: expected")),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("without")
    image_folder(place / "kinds", 6)
    quick(place / "kinds", place / "runs", name="run", epochs=1)
    for folder, (names, _) in FOLDERS.items():
        (place / folder).mkdir()
        for name in names:
            (place / folder / name).parent.mkdir(parents=True, exist_ok=True)
            if name.endswith("/"):
                (place / folder / name).mkdir()
            else:
                (place / folder / name).write_text(f"no image: {name}")
    return place


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_without_images_is_one_line_that_says_what_is_in_it(place, monkeypatch, capfd, command):
    monkeypatch.chdir(place)
    monkeypatch.setattr(html, "write", lambda folder: folder / "report.html")
    before = [path for path in sorted(place.rglob("*")) if path.is_file()]
    for folder, (_, texts) in FOLDERS.items():
        monkeypatch.setattr(stop_signals, "STOP", StopFlag())
        with pytest.raises(SystemExit) as ended:
            app.main([word.format(folder) for word in COMMANDS[command]])
        lines = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("engine: ")]
        assert ended.value.code == 2 and len(lines) == 1, (folder, lines)
        expected = ("is not a run folder: expected a config.yaml",) if command == "compare" else texts
        assert any(text in lines[0] for text in expected), (folder, lines)
    assert before == [path for path in sorted(place.rglob("*")) if path.is_file()]


def test_one_input_that_can_be_used_is_an_answer(place, monkeypatch, capfd):
    monkeypatch.chdir(place)
    words = ["predict", "runs/run", "kinds/ant", "empty", "broken"]
    for more, code in (([], 0), (["--strict"], 2)):
        monkeypatch.setattr(stop_signals, "STOP", StopFlag())
        with pytest.raises(SystemExit) as ended:
            app.main([*words, *more])
        assert ended.value.code == code and "4 of 10 images could not be used" in capfd.readouterr().err
