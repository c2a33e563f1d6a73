import errno
import os
import pty
import shutil
import signal
import sys
import threading

import pytest
from processes import environment, run, run_python
from small_runs import best, image_folder, quick, same_tensors, table

from skipway.cli import app, train_options
from skipway.errors import InputError
from skipway.report import html
from skipway.utils import stop_signals
from skipway.utils.atomic_files import write_file
from skipway.utils.console import ProgressBar
from skipway.utils.stop_signals import StopFlag

SKIPWAY = [sys.executable, "-m", "skipway"]
TRAIN = ["train", "kinds", "-m", "resnet20", "-e", "1", "-b", "16", "--threads", "1", "--precision", "fp32"]


def epochs(count):
    return [*TRAIN[:5], str(count), *TRAIN[6:]]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    base = tmp_path_factory.mktemp("cli")
    image_folder(base / "kinds", 12)
    write, html.write = html.write, lambda folder: folder / "report.html"
    quick(base / "kinds", base / "runs", name="run", epochs=1)
    html.write = write
    return base


@pytest.fixture
def place(base, tmp_path, monkeypatch):
    place = shutil.copytree(base, tmp_path / "place", symlinks=True)
    monkeypatch.chdir(place)
    return place


@pytest.fixture
def call(place, monkeypatch, capfd):
    """Run a command in this process: (exit code, output, errors)."""
    monkeypatch.setattr(stop_signals, "STOP", StopFlag())
    monkeypatch.setattr(html, "write", lambda folder: folder / "report.html")

    def run(*words):
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            app.main([str(w) for w in words])
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        return ended.value.code or 0, out, err

    return run


def test_training_on_the_command_line_is_training_in_python(call, place):
    code, out, err = call(*TRAIN)
    assert code == 0 and not err
    assert out.splitlines()[0] == "run runs/kinds-resnet20" and "final val accuracy: " in out
    assert same_tensors(best(place / "runs" / "kinds-resnet20"), best(place / "runs" / "run"))
    code, out, err = call(*TRAIN, "--quiet", "--name", "q")
    assert (code, out, err) == (0, "", "")


def test_a_run_goes_on_from_the_command_line(call):
    code, out, err = call("train", "--resume", "runs/run", "--epochs", "2")
    assert code == 0 and "resuming runs/run" in out and "epochs changed from 1 to 2" in out and not err
    code, out, err = call("train", "--config", "runs/run/config.yaml", "-o", "again", "--seed", "3")
    assert code == 0 and "run again/run" in out


BAD = {
    ("nothing",): "Unknown command",
    ("train",): "expected DATA, got none",
    ("train", "absent"): "cannot find the data 'absent'",
    ("train", "kinds", "--epoch", "3"): "--epoch",
    ("train", "kinds", "--epochs", "x"): "--epochs",
    ("train", "kinds", "--epochs", "0"): "epochs: expected a whole number from 1 to 100,000, got 0",
    ("train", "kinds", "--lr", "nan"): "lr: expected a finite number from",
    (
        "train",
        "kinds",
        "--optimizer",
        "lamb",
    ): 'for --optimizer. Choose from: "auto", "sgd", "adamw"',
    ("find-lr", "kinds", "--patience", "3"): "--patience",
    ("train", "kinds", "-m", "resnet21"): "unknown architecture 'resnet21' (did you mean",
    ("train", "--config", "absent.yaml"): "cannot read the config absent.yaml",
    ("train", "--resume", "kinds"): "is not a run folder",
    ("train", "kinds", "--name", "../x"): "cannot name the run",
    ("predict",): "RUN requires an argument",
    ("predict", "runs/run"): "cannot predict: expected at least one image",
    ("predict", "kinds", "kinds"): "expected weights/best.safetensors in it, found none",
    ("predict", "kinds/ant/00.png", "kinds"): "not a safetensors file",
    ("evaluate", "runs/run", "absent"): "cannot find the data",
    ("evaluate", "runs/run", "kinds", "--split", "val"): "expected the split train, got 'val'",
    ("check", "absent"): "cannot find the data",
    ("summary", "absent"): "unknown architecture",
    ("models", "zz*"): "expected a pattern that matches an architecture, got 'zz*'",
    (
        "models",
        "resnet20",
        "zz*",
        "--pretrained",
    ): "expected a pattern that matches pretrained weights, got 'resnet20, zz",
}


@pytest.mark.parametrize("words", BAD, ids=" ".join)
def test_every_mistake_is_one_line_with_exit_code_2(call, words):
    code, out, err = call(*words)
    assert code == 2 and len(err.splitlines()) == 1 and err.startswith("skipway: error: ") and BAD[words] in err, err
    assert "run " not in out


def test_a_disk_that_cannot_be_written_is_exit_code_4(call, place):
    (place / "file").write_text("")
    code, _, err = call(*TRAIN, "-o", "file/below")
    assert code == 4 and len(err.splitlines()) == 1 and "cannot write " in err


def test_numbers_that_are_not_finite_are_exit_code_3(call):
    code, _, err = call(*epochs(30), "--lr", "1e4", "--schedule", "constant", "--weight-decay", "10")
    assert code == 3 and len(err.splitlines()) == 1 and "finite" in err


def test_a_fault_of_ours_is_exit_code_70_and_a_file(call, place, monkeypatch):
    monkeypatch.setattr("skipway.runs.train_phases.fit", lambda *a, **k: 1 / 0)
    code, _, err = call(*TRAIN, "--name", "crash")
    assert code == 70 and len(err.splitlines()) == 1 and "with the traceback in runs/crash/crash.txt" in err
    assert "ZeroDivisionError" in (place / "runs" / "crash" / "crash.txt").read_text()
    monkeypatch.setattr("skipway.commands.models.model_table", lambda *a: 1 / 0)
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setattr("tempfile.tempdir", None)
    code, _, err = call("models")
    assert code == 70 and len(err.splitlines()) == 1 and list(place.glob("skipway-crash-*.txt"))


def test_an_interrupt_from_elsewhere_is_exit_code_130(call, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("skipway.commands.models.model_table", interrupt)
    assert call("models")[0] == 130


STOPPED = {
    ("export", "runs/run"): "commands.export.load",
    ("compare", "runs/run", "runs/run"): "commands.compare.read_recipe",
    ("grow", "runs/run", "--to", "resnet32"): "commands.grow.grow_tensors",
    ("probe", "runs/run", "--only", "diagram"): "commands.probe.diagram",
    ("summary", "runs/run"): "commands.summary.load",
    ("find-lr", "kinds"): "commands.find_lr.range_test",
    ("predict", "runs/run", "kinds"): "commands.inference_device.load",
    ("evaluate", "runs/run", "kinds"): "commands.inference_device.load",
    ("check", "kinds"): "commands.check_data.describe",
    ("models",): "commands.models.model_table",
    ("env",): "commands.env.environment_table",
    ("weights", "get", "resnet18"): "commands.weights_get.create_model",
    tuple(TRAIN): "runs.prepared_run.describe_environment",
}


@pytest.mark.parametrize("words", STOPPED, ids=lambda words: words[0])
def test_every_command_ends_at_a_signal_within_its_work(call, place, monkeypatch, words):
    def signalled(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)
        raise ValueError("the signal was not heard")

    monkeypatch.setattr(f"skipway.{STOPPED[words]}", signalled)
    code, out, err = call(*words)
    assert (
        code == 75 and err.splitlines()[-1] == "skipway: stopped by SIGTERM: written files are complete. Run it again."
    )
    assert not out or words[0] == "train"
    assert sorted(p.name for p in place.iterdir()) == ["kinds", "runs"]
    assert words[0] == "train" or sorted(p.name for p in (place / "runs").iterdir()) == ["last", "run"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ImportError])  # a library may turn the one into the other
def test_an_interrupt_in_an_import_is_no_fault_of_ours(error, monkeypatch, capsys):
    monkeypatch.setattr(stop_signals, "STOP", StopFlag())
    stop_signals.STOP.interrupts = True
    stop_signals.STOP.request("SIGINT")

    def command():
        raise error

    assert app._run(command) == 75 and capsys.readouterr().err.count("\n") == 1


def test_a_signal_after_the_work_is_done_changes_nothing(place):
    script = (
        "import atexit, os, signal, sys\n"
        "from skipway.__main__ import main\n"
        "atexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM))\n"
        "sys.argv = ['skipway', '--version']\n"
        "main()"
    )
    done = run_python(script, cwd=place)
    assert done.returncode == 0 and done.stdout.startswith("skipway 0") and not done.stderr


def test_predict_writes_names_to_the_console_and_to_a_table(call, place):
    (place / "bad\n.png").write_text("x")
    code, out, err = call("predict", "runs/run", "kinds/ant", "bad\n.png", "--top", "2", "--csv", "p.csv")
    lines = out.splitlines()
    assert code == 0 and len(lines) == 13 and lines[0].startswith("kinds/ant/00.png: ") and lines[0].count("%") == 2
    assert lines[-1].startswith("bad\\x0a.png: error: ") and "1 of 13 images could not be used" in err
    assert len(table(place / "p.csv")) == 13
    assert call("predict", "runs/run", "kinds/ant", "bad\n.png", "--strict")[0] == 2
    assert call("predict", "runs/run", "kinds/ant", "--strict")[0] == 0


def test_a_training_that_recomputes_begins_anew_where_the_process_is_ours(call, place, monkeypatch):
    begun = []
    monkeypatch.setattr(train_options, "restart_gathering", lambda: begun.append(1))
    assert call(*TRAIN, "--recompute", "1", "--name", "thrifty")[0] == 0
    assert not begun  # main was given its words by a program that goes on
    (place / "thrifty.yaml").write_text("recompute: stages\n")
    for given, expected in (({}, False), ({"recompute": "none"}, False), ({"recompute": 2}, True)):
        assert train_options._recomputes(given, None, None) is expected
    assert train_options._recomputes({}, place / "thrifty.yaml", None)
    assert not train_options._recomputes({}, place / "missing.yaml", place / "no_run")


def test_the_other_commands_answer(call):
    for words, said in (
        (("evaluate", "runs/run", "kinds"), "accuracy"),
        (("check", "kinds"), "3 classes"),
        (("summary", "runs/run"), "8"),
        (("summary", "resnet20", "--code"), "Skip("),
        (("models", "resnet1*"), "resnet18"),
        (("models", "resnet18*", "resnet34", "--exclude", "*d"), "resnet34   21,797,672 parameters  basic 3-4-6-3"),
        (("models", "resnet18", "--pretrained"), "resnet18.a2_in1k "),
        (("env",), "torch"),
        (("--version",), "skipway 0"),
        (("--help",), "train"),
        ((), "Usage"),
    ):
        code, out, err = call(*words)
        assert code == 0 and said in out and (not err or err.startswith("engine: torch (")), words


def shell(place, text, **variables):
    return run("bash", "-c", text.replace("skipway", " ".join(SKIPWAY)), cwd=place, env=environment(**variables))


@pytest.mark.parametrize("end", ["2> /dev/full | head -1", "> /dev/full 2>&-"], ids=lambda e: e)
def test_nobody_listening_leaves_training_as_it_is(place, end):
    done = shell(place, f"set -o pipefail; skipway {' '.join(TRAIN)} --name unheard {end}")
    assert done.returncode == 0 and done.stderr == ""
    assert same_tensors(best(place / "runs" / "unheard"), best(place / "runs" / "run"))
    assert (place / "runs" / "unheard" / "report.html").exists()


def test_an_answer_that_is_lost_is_said_but_a_closed_pipe_is_not(place):
    done = shell(place, "skipway models > /dev/full")
    assert done.returncode == 4 and done.stderr == (
        "skipway: error: cannot write standard output: No space left on device. Free disk space, or redirect it to "
        "another disk.\n"
    )
    done = shell(place, "set -o pipefail; skipway models | true")
    assert done.returncode == 0 and done.stderr == ""


def test_a_terminal_that_knows_no_letters_beyond_english_is_served(place):
    plain = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONPROFILEIMPORTTIME": "1"}
    done = shell(place, f"skipway {' '.join(TRAIN)} -o рабо --name é", **plain)
    assert done.returncode == 0 and done.stdout.startswith("run \\u0440\\u0430\\u0431\\u043e/\\xe9\n")
    assert (place / "рабо" / "é" / "report.html").exists()
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "torch" in imported and not imported & {"torch._dynamo", "sympy", "sklearn", "pandas"}  # a second and more


def test_a_signal_while_torch_is_loading_ends_with_75(place):
    script = (
        "import os, sys, threading, time\n"
        "from skipway.cli import app\n"
        "def later():\n"
        "    while 'torch' not in sys.modules: time.sleep(0.001)\n"
        f"    os.kill(os.getpid(), {int(signal.SIGUSR1)})\n"
        "threading.Thread(target=later, daemon=True).start()\n"
        f"app.main({TRAIN!r})"
    )
    done = run_python(script, cwd=place)
    assert done.returncode == 75 and done.stderr.count("\n") == 1, done.stderr
    assert "stopped by SIGUSR1: written files are complete. Run it again." in done.stderr


def test_a_terminal_sees_one_live_line(call, monkeypatch):
    main, other = pty.openpty()
    seen = []
    reader = threading.Thread(target=lambda: seen.extend(iter(lambda: read(main), b"")))
    reader.start()
    with os.fdopen(other, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        patch.setattr(ProgressBar, "LIVE_EVERY", 0.0)  # an epoch takes less than its 0.1 s on a fast machine
        assert call(*(w.replace("16", "2") for w in epochs(6)), "--name", "live")[0] == 0
    reader.join()
    text = b"".join(seen).decode()
    live = [part for part in text.split("\r\x1b[K") if "% waiting" in part and "\n" not in part]
    assert live and all("images/s, " in part and "%" in part for part in live)
    assert any(" left)" in part for part in live) and "Traceback" not in text


def read(descriptor):
    try:
        return os.read(descriptor, 65536)
    except OSError:  # the other side is closed
        return b""


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")]
)
def test_a_lack_of_memory_is_no_fault_of_ours(error, capsys):
    def command():
        raise error

    assert app._run(command) == 4
    assert capsys.readouterr().err.splitlines() == [
        "skipway: error: out of memory. Use a smaller model, smaller images, or a machine with more memory."
    ]


@pytest.mark.parametrize(
    "error, code",
    [
        (OSError(errno.ENOSPC, "No space left on device", "x.png"), 4),
        (OSError(errno.EACCES, "Permission denied", "x.png"), 4),
        (OSError(errno.ESTALE, "Stale file handle", "x.png"), 4),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 300), 2),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 4),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), 4),
        (ValueError("ours"), 70),
    ],
)
def test_the_exit_code_says_whose_fault_it_is(error, code, capsys, monkeypatch, tmp_path):
    def command():
        raise error

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))  # where no traceback can be written
    assert app._run(command) == code
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    if "space" in str(error):
        assert "x.png: No space left on device. Free some space there, or write to another disk" in line
    if code == 2:
        assert "...: expected a shorter path, got a name that is too long. Shorten it." in line


def test_a_file_whose_name_is_too_long_is_a_mistake_of_the_user(tmp_path):
    with pytest.raises(InputError, match="cannot write .*: the name is too long. Choose a shorter one."):
        write_file(tmp_path / ("n" * 300), b"")


@pytest.mark.parametrize(
    "words, code",
    [
        (("train", "kinds", "--name", "n" * 300), 2),
        (("predict", "runs/" + "n" * 300, "kinds"), 2),
        (("summary", "n" * 300), 2),
        (("export", "runs/run", "-o", "file/below/x.onnx"), 4),
        (("find-lr", "kinds", "-m", "resnet20", "-b", "16", "-o", "file/below.png"), 4),
        (("compare", "runs/run", "runs/run", "-o", "file/below.png"), 4),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else None,
)
def test_names_and_places_that_cannot_be_are_no_faults_of_ours(call, place, words, code):
    (place / "file").write_text("")
    ended, _, err = call(*words)
    assert ended == code and err.splitlines()[-1].startswith("skipway: ")


def test_predict_counts_the_files_of_a_folder_that_it_leaves_out(call, place):
    (place / "kinds" / "ant" / "notes.txt").write_text("x")
    code, out, err = call("predict", "runs/run", "kinds/ant")
    assert code == 0 and len(out.splitlines()) == 12 and "kinds/ant: skipped 1 .txt file (text)" in err


def test_a_working_folder_that_was_removed_is_one_line(tmp_path):
    (tmp_path / "gone").mkdir()
    script = "import os, skipway.__main__\nos.rmdir(os.getcwd())\nskipway.__main__.main()"
    done = run_python(script, cwd=tmp_path / "gone")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "cannot start: expected a working folder, got a removed one. Change to another." in done.stderr


def test_a_home_folder_that_cannot_be_written_to_is_not_reported(tmp_path):
    script = "from skipway.cli.app import main\ntry:\n    main(['--version'])\nexcept SystemExit:\n    pass\n"
    script += "import matplotlib.font_manager"
    variables = {
        name: value for name, value in environment().items() if name not in ("MPLCONFIGDIR", "XDG_CONFIG_HOME")
    }
    done = run_python(script, env={**variables, "HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null"})
    assert done.returncode == 0 and done.stderr == ""
