import errno
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from sklearn.metrics import precision_recall_fscore_support
from small_runs import QUICK, StopAt, Words, best, image_folder, numbers, quick, same_tensors, table

import skipway as sw
from skipway.errors import InputError, Interrupted, NotFiniteError, SkipwayError, StorageError
from skipway.report import html
from skipway.runs.recipe import Recipe
from skipway.runs.run_csv_tables import escape_cell
from skipway.runs.run_folder import new_run_folder, read_recipe, write_recipe
from skipway.runs.train_run import train
from skipway.training import loop
from skipway.training.losses import Classification
from skipway.utils import atomic_files
from skipway.utils.atomic_files import Lock
from skipway.utils.stop_signals import StopFlag

FILES = {
    "report.html",
    "weights/best.safetensors",
    "weights/last",
    "config.yaml",
    "results.csv",
    "metrics.json",
    "per_class.csv",
    "confusion_matrix.csv",
    "predictions.csv",
    "splits.csv",
    "skipped.csv",
    "env.json",
    "plots",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def data(place):
    return image_folder(place / "kinds")


@pytest.fixture(scope="module")
def first(data, place):
    """One whole run, with its report; nobody changes it."""
    return quick(data, place / "runs")


@pytest.fixture
def bare(monkeypatch):
    """Runs without a drawn report, which takes most of a second."""
    monkeypatch.setattr(html, "write", lambda folder: folder / "report.html")


def test_a_run_leaves_the_folder_that_the_design_lists(first):
    there = {str(p.relative_to(first.path)) for p in first.path.rglob("*")}
    assert there >= FILES and not any(".tmp" in p or ".lock" in p for p in there)
    assert {p.parts[0] for p in map(Path, there)} == {Path(f).parts[0] for f in FILES}
    header = (first.path / "results.csv").read_text().splitlines()[0]
    assert header == (
        "epoch,seconds,lr,train_loss,train_accuracy,val_loss,val_accuracy,samples_per_second,data_time_fraction"
    )
    assert first.best.is_file() and 10_000 < first.report.stat().st_size < 200_000
    assert first.network().predict_proba([np.zeros((8, 8), np.uint8)]).shape == (1, 3)
    assert first.metrics == numbers(first.path) and len(first.history) == 2
    assert {"val_accuracy", "val_loss", "epochs", "seconds", "samples_per_second"} <= set(first.metrics)
    assert "test_accuracy" not in first.metrics and first.metrics["status"] == "finished"


def test_no_file_of_a_run_names_a_folder_that_was_not_given(data, place, monkeypatch):
    monkeypatch.chdir(place)
    run = quick("kinds", "runs", name="relative", epochs=1)
    assert run.path == Path("runs/relative")
    for path in run.path.rglob("*"):
        if path.is_file():
            assert str(place).encode() not in path.read_bytes(), path


def test_last_leads_to_the_newest_run_and_numbers_go_up(data, tmp_path, bare):
    runs = [quick(data, tmp_path, epochs=1).path.name for _ in range(3)]
    assert runs == ["kinds-resnet20", "kinds-resnet20-2", "kinds-resnet20-3"]
    assert os.readlink(tmp_path / "last") == "kinds-resnet20-3"
    assert sw.load(tmp_path / "last").spec.class_names == ("ant", "bee", "cow")


def test_a_folder_called_last_is_left_alone(data, tmp_path, bare):
    (tmp_path / "last").mkdir()
    quick(data, tmp_path, epochs=1)
    assert not (tmp_path / "last").is_symlink()


def test_a_name_that_is_taken_is_refused(data, first, place):
    with pytest.raises(InputError, match="holds a run already. Resume it with --resume .*, or use another --name"):
        quick(data, place / "runs", name=first.path.name)


@pytest.mark.parametrize("file", ["config.yaml", "metrics.json", "notes.txt"])
@pytest.mark.parametrize("source", ["kinds", "nowhere"])
def test_a_folder_with_files_of_the_user_is_refused_and_left_as_it_is(place, tmp_path, file, source):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / file).write_text("mine: 1\n")
    with pytest.raises(InputError):
        quick(place / source, tmp_path, name="mine")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", file]
    assert (tmp_path / "mine" / file).read_text() == "mine: 1\n"


@pytest.mark.parametrize("output", ["runs", ".", "ant", "link"])
def test_a_run_among_its_own_images_is_refused(tmp_path, monkeypatch, output):
    monkeypatch.chdir(image_folder(tmp_path / "images", 4))
    (tmp_path / "link").symlink_to(tmp_path / "images")
    before = sorted(tmp_path.rglob("*"))
    for data in (".", tmp_path / "link"):
        with pytest.raises(InputError, match="expected a folder outside of the dataset, got one within"):
            quick(data, tmp_path / "link" if output == "link" else output)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_refused_run_takes_back_only_the_folder_that_it_made(tmp_path):
    (tmp_path / "mine").mkdir()
    broken = image_folder(tmp_path / "broken", 4)
    for path in broken.rglob("*.png"):
        path.write_text("no image")
    for name in ("mine", "other"):
        with pytest.raises(InputError, match="unreadable|could not be"):
            quick(broken, tmp_path, name=name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "mine"]
    assert not list((tmp_path / "mine").iterdir())


def test_a_second_start_takes_nothing_from_the_running_run(data, tmp_path):
    with new_run_folder(Recipe(output=str(tmp_path), name="run"), "data", "model") as folder:
        write_recipe(folder, Recipe(data=str(data)))
        for _ in range(2):
            with pytest.raises(InputError, match="holds a run already"):
                quick(data, tmp_path, name="run")
        assert read_recipe(folder).data == str(data)


def test_a_start_that_is_late_for_the_lock_takes_nothing_back(tmp_path):
    recipe = Recipe(output=str(tmp_path), name="run")
    (tmp_path / "run").mkdir()
    with Lock(tmp_path / "run"):  # of a process that is about to write its config.yaml
        with pytest.raises(InputError, match="another run is using it"):
            with new_run_folder(recipe, "data", "model"):
                pytest.fail("two runs in one folder")
        assert os.listdir(tmp_path / "run") == [".lock"]


def test_a_name_that_is_too_long_is_refused(data, tmp_path):
    with pytest.raises(InputError, match="cannot name the run aaa.*expected at most 200 bytes, got 300"):
        quick(data, tmp_path, name="a" * 300)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["", ".", "..", "last", "a/b", "/x", "../x", "a/"])
def test_a_hostile_name_is_refused(data, tmp_path, name):
    with pytest.raises(
        InputError, match="cannot name the run .*: expected a plain folder name other than 'last'. Change"
    ):
        quick(data, tmp_path, name=name)
    assert not list(tmp_path.iterdir())


def test_the_tables_agree_with_each_other_and_with_scikit_learn(first):
    predictions, matrix = table(first.path / "predictions.csv"), table(first.path / "confusion_matrix.csv")
    names = [row["true"] for row in matrix]
    counts = np.array([[int(row[n]) for n in names] for row in matrix])
    assert counts.sum() == len(predictions) == sum(r["split"] == "val" for r in table(first.path / "splits.csv"))
    assert first.metrics["val_accuracy"] == np.trace(counts) / counts.sum()
    true, found = [r["label"] for r in predictions], [r["predicted"] for r in predictions]
    assert first.metrics["val_accuracy"] == np.mean(np.array(true) == found)
    wanted = precision_recall_fscore_support(true, found, labels=names, zero_division=0)
    rows = table(first.path / "per_class.csv")
    for key, values in zip(("precision", "recall", "f1", "count"), wanted, strict=True):
        assert [float(r[key]) for r in rows] == pytest.approx(values)
    assert first.metrics["val_loss"] == pytest.approx(np.mean([float(r["loss"]) for r in predictions]), abs=1e-5)


def test_predictions_are_those_of_the_loaded_network(first, data):
    rows = table(first.path / "predictions.csv")
    network = sw.load(first.path)
    shares = network.predict_proba([data / r["file"] for r in rows])
    assert [network.spec.class_names[i] for i in shares.argmax(1)] == [r["predicted"] for r in rows]
    assert shares.max(1) == pytest.approx([float(r["probability"]) for r in rows], abs=1e-4)


def test_a_test_set_is_what_is_judged(tmp_path, bare):
    data = image_folder(tmp_path / "d", 6, ("train", "valid", "test"))
    run = quick(data, tmp_path / "runs")
    rows = table(run.path / "predictions.csv")
    assert {r["split"] for r in rows} == {"test"} and len(rows) == 18
    assert run.metrics["test_accuracy"] == np.mean([r["label"] == r["predicted"] for r in rows])
    assert {"val_accuracy", "test_loss"} <= set(run.metrics)
    assert sw.evaluate(run.path, data).accuracy == run.metrics["test_accuracy"]


def test_a_config_fed_back_repeats_the_run_to_the_bit(first, tmp_path, bare):
    config = first.path / "config.yaml"
    assert list(yaml.safe_load(config.read_text())) == ["schema", *sw.Recipe.names()]
    again = train(config=config, output=tmp_path)
    assert again.path.name == first.path.name and same_tensors(best(first.path), best(again.path))
    other = train(config=config, output=tmp_path, seed=1)
    assert not same_tensors(best(first.path), best(other.path))


def test_a_config_beside_its_own_run_makes_a_numbered_one(data, tmp_path, bare):
    run = quick(data, tmp_path, epochs=1)
    assert train(config=run.path / "config.yaml").path.name == "kinds-resnet20-2"


def test_the_process_is_as_before(data, tmp_path, bare):
    import signal

    threads, state, handler = torch.get_num_threads(), torch.get_rng_state(), signal.getsignal(signal.SIGTERM)
    quick(data, tmp_path, threads=threads + 1, epochs=1)
    assert torch.get_num_threads() == threads and torch.equal(state, torch.get_rng_state())
    assert signal.getsignal(signal.SIGTERM) == handler


def test_training_works_in_another_thread(data, tmp_path, bare):
    found = []
    thread = threading.Thread(target=lambda: found.append(quick(data, tmp_path, epochs=1)))
    thread.start()
    thread.join()
    assert found[0].metrics["epochs"] == 1


def test_a_signal_stops_a_run_of_a_host_program_in_good_order(data, tmp_path, monkeypatch, bare):
    import signal

    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
    try:
        add = loop.StepLog.add
        monkeypatch.setattr(loop.StepLog, "add", lambda *a: (os.kill(os.getpid(), signal.SIGTERM), add(*a))[1])
        with pytest.raises(Interrupted, match="stopped by SIGTERM after step 1: progress is saved"):
            quick(data, tmp_path)
        assert not heard
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [1]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_stop_before_the_start_and_while_judging_is_said(data, tmp_path, monkeypatch, bare):
    stop = StopFlag()
    stop.request("SIGUSR1")
    with pytest.raises(Interrupted, match="stopped by SIGUSR1 before training. Run it again"):
        quick(data, tmp_path, stop=stop)
    assert not list(tmp_path.iterdir())
    late = StopFlag()
    monkeypatch.setattr("skipway.runs.train_phases.fit", lambda *a, **k: (loop.fit(*a, **k), late.request("SIGTERM")))
    with pytest.raises(
        Interrupted, match="stopped by SIGTERM during the final evaluation, trained weights saved. Compl"
    ):
        quick(data, tmp_path, stop=late)
    monkeypatch.undo()
    monkeypatch.setattr(html, "write", lambda folder: folder / "report.html")
    words = Words()
    run = train(resume=tmp_path / "last", console=words)
    assert "only evaluated and reported again" in words and run.metrics["epochs"] == 2


@pytest.mark.parametrize("action", ["remove", "move"])
def test_a_run_whose_folder_is_gone_ends_with_a_storage_error(action, data, tmp_path, monkeypatch, bare):
    end = loop.StepLog.end_batch

    def after_a_step(*args, **options):
        if (run := tmp_path / "run").is_dir():
            shutil.rmtree(run) if action == "remove" else run.rename(tmp_path / "moved")
        return end(*args, **options)

    monkeypatch.setattr(loop.StepLog, "end_batch", after_a_step)
    with pytest.raises(StorageError, match="cannot (write to the run|save step) .*run.*: expected .*, got none"):
        quick(data, tmp_path, name="run")
    assert not (tmp_path / "run" / "weights").exists(), "a folder that looks like a run, but cannot go on"


def test_a_run_whose_folder_goes_while_it_is_judged_ends_with_a_storage_error(data, tmp_path, monkeypatch, bare):
    monkeypatch.setattr(html, "write", lambda folder: (folder / "config.yaml").unlink())
    with pytest.raises(StorageError, match="cannot write to the run .*: expected its config.yaml, got none"):
        quick(data, tmp_path)


def test_paths_and_numbers_of_numpy_are_taken_as_they_are(data, tmp_path, bare):
    run = quick(data, tmp_path, epochs=np.int64(1), lr=np.float64(0.01))
    assert run.metrics["resolved"]["lr"] == 0.01


def test_training_needs_data():
    with pytest.raises(InputError, match="cannot train: expected DATA, got none. Pass a built-in dataset such as"):
        train()


def test_a_config_and_a_run_to_go_on_with_exclude_each_other(first):
    with pytest.raises(InputError, match="cannot train: expected --resume or --config, got both"):
        train(resume=first.path, config=first.path / "config.yaml")


@pytest.mark.parametrize("name", [None, "run"])
def test_an_output_that_cannot_be_written_is_refused_before_anything_is_decoded(data, tmp_path, monkeypatch, name):
    monkeypatch.setattr("skipway.runs.image_datamodule.decode_images", lambda *a: pytest.fail("decoded"))
    file = tmp_path / "file"
    file.write_text("mine")
    for output in (file, file / "below"):
        with pytest.raises((InputError, StorageError)) as caught:
            quick(data, output, name=name)
        assert caught.value.exit_code in (2, 4) and "\n" not in str(caught.value)
    with pytest.raises(InputError, match="expected a folder, got a file. Use another --output."):
        quick(data, file)
    assert file.read_text() == "mine"

    def readonly(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "mkdir", readonly)
    with pytest.raises(StorageError, match="Read-only file system") as caught:
        quick(data, tmp_path / "runs", name=name)
    assert caught.value.exit_code == 4


def test_a_refused_run_leaves_no_folder(data, tmp_path):
    for options, said in (
        ({"model": "resnet21"}, "unknown architecture"),
        ({"stem": "none"}, "stem"),
        ({"max_pixels": 1}, "read"),
    ):
        with pytest.raises(InputError, match=said):
            quick(data, tmp_path, **options)
    assert not [p for p in tmp_path.iterdir() if p.name != "last"]


def test_low_space_is_said_before_the_first_epoch(data, tmp_path, monkeypatch, bare):
    monkeypatch.setattr("skipway.runs.console_summary.free_bytes", lambda path: 1000)
    words = Words()
    quick(data, tmp_path, words)
    said = [i for i, line in enumerate(words.lines) if "bytes, but only 1,000 are free in" in line]
    assert said and said[0] < next(i for i, line in enumerate(words.lines) if "train loss/acc" in line)


def test_a_disk_that_fills_while_training_ends_with_storage_and_a_whole_checkpoint(data, tmp_path, monkeypatch, bare):
    write = atomic_files.write_new

    def filling(path, data):
        if "step" in str(path) or ".tmp-step-00000003" in str(path.parent):
            raise OSError(28, "No space left on device")
        write(path, data)

    monkeypatch.setattr(atomic_files, "write_new", filling)
    with pytest.raises(StorageError, match="No space left on device"):
        quick(data, tmp_path, name="full", save_every=0)
    monkeypatch.undo()
    monkeypatch.setattr(html, "write", lambda folder: folder / "report.html")
    train(resume=tmp_path / "full")
    whole = quick(data, tmp_path, name="whole")
    assert same_tensors(best(whole.path), best(tmp_path / "full"))


def test_a_library_that_finds_the_disk_full_is_a_matter_of_storage(data, tmp_path, monkeypatch):
    def full(folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(html, "write", full)
    with pytest.raises(
        StorageError, match="The last checkpoint is intact: free disk space or repair the disk, then resume"
    ):
        quick(data, tmp_path, epochs=1)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        ImportError("_backend_agg.so: failed to map segment from shared object"),
    ],
)
def test_a_lack_of_memory_outside_training_is_no_fault_of_ours(data, tmp_path, monkeypatch, error):
    def starved(folder):
        raise error

    monkeypatch.setattr(html, "write", starved)
    with pytest.raises(StorageError, match="out of memory. Use a smaller model") as e:
        quick(data, tmp_path, name="x", epochs=1)
    assert e.value.exit_code == 4 and not (tmp_path / "x" / "crash.txt").exists()


def test_what_nobody_foresaw_goes_to_a_file_in_the_run_folder(data, tmp_path, monkeypatch):
    def fault(folder):
        raise KeyError("odd\nthing")

    monkeypatch.setattr(html, "write", fault)
    with pytest.raises(SkipwayError, match="internal error .KeyError: .* with the traceback in .*crash.txt") as e:
        quick(data, tmp_path, name="x", epochs=1)
    assert e.value.exit_code == 70 and "\n" not in str(e.value)
    assert "Traceback" in (tmp_path / "x" / "crash.txt").read_text()

    def full(path, data):
        raise StorageError("full")

    def fault_on_a_full_disk(folder):
        monkeypatch.setattr("skipway.runs.run_crash_report.write_file", full)
        raise KeyError("odd")

    monkeypatch.setattr(html, "write", fault_on_a_full_disk)
    with pytest.raises(KeyError, match="odd"):
        quick(data, tmp_path, epochs=1)


def test_where_memory_does_not_hold_two_images_that_is_said(data, tmp_path, monkeypatch):
    def loss(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: 1 bytes")

    monkeypatch.setattr(Classification, "loss", loss)
    with pytest.raises(
        StorageError, match="ran out of memory with batch size 16 in 8 microbatches. Use a smaller --img-size"
    ):
        quick(data, tmp_path)


def test_a_stop_before_the_first_step_says_to_start_again(data, tmp_path):
    with pytest.raises(Interrupted, match="stopped by SIGTERM before the first step. Run it again"):
        quick(data, tmp_path, lr="auto", stop=StopAt(1 + 60 + 5))  # polls: at the start, for each image, for rates


@pytest.mark.parametrize(
    "where", ["train_phases.retry_with_microbatches", "train_run._refuse_unusable", "prepared_run.machine_facts"]
)
@pytest.mark.parametrize(
    "message, error, text",
    [
        (
            "gloo: Connection closed by peer",
            Interrupted,
            "lost the connection to another process; checkpoints are saved. Resume with --resume",
        ),
        ("gloo: Timed out waiting 1 ms", Interrupted, "another process does not respond; checkpoints are saved"),
        ("NCCL error: invalid usage", (RuntimeError, SkipwayError), "NCCL error: invalid usage"),
    ],
)
def test_a_process_whose_peer_is_gone_says_how_to_resume(data, tmp_path, monkeypatch, where, message, error, text):
    def lost(*_, **__):
        monkeypatch.setattr("skipway.distributed.collectives.world_size", lambda: 2)
        raise RuntimeError(message)

    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr(f"skipway.runs.{where}", lost)
    with pytest.raises(error, match=text):
        quick(data, tmp_path)
    assert not list(tmp_path.rglob("crash.txt")) or error is not Interrupted


def test_a_loss_that_is_not_finite_names_the_images(data, tmp_path, monkeypatch, bare):
    loss = Classification.loss
    calls = []

    def third_is_nan(*a, **k):
        calls.append(1)
        return loss(*a, **k) * (float("nan") if len(calls) == 3 else 1)

    monkeypatch.setattr(Classification, "loss", third_is_nan)
    with pytest.raises(NotFiniteError, match=r"step 3 of epoch 1: .* with the images (ant|bee|cow)/\d\d\.png, "):
        quick(data, tmp_path, name="nan", save_every=0)
    monkeypatch.undo()
    monkeypatch.setattr(html, "write", lambda folder: folder / "report.html")
    train(resume=tmp_path / "nan")
    assert same_tensors(best(tmp_path / "nan"), best(quick(data, tmp_path).path))


def test_a_rate_beyond_reason_ends_with_not_finite(data, tmp_path, bare):
    with pytest.raises(NotFiniteError, match="expected (a )?finite"):
        quick(data, tmp_path, lr=1e4, epochs=20, momentum=0.99, weight_decay=10.0, schedule="constant")


@pytest.mark.parametrize("batch_size", [47, 46, 23, 2])
def test_no_batch_norm_ever_meets_a_batch_of_one(data, tmp_path, bare, batch_size):
    assert quick(data, tmp_path, batch_size=batch_size, epochs=1, val_fraction=13 / 60).metrics["epochs"] == 1


def test_the_trained_file_is_plain(data, tmp_path, bare):
    import copy

    run = quick(data, tmp_path, precision="bf16", ema=0.5, epochs=1)
    network = run.network()
    x = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        y = network(x)
        assert y.dtype == torch.float32 and torch.equal(copy.deepcopy(network)(x), y)
        batch = {0: torch.export.Dim("batch", min=2, max=64)}
        exported = torch.export.export(network, (x,), dynamic_shapes=(batch,)).module()
        assert torch.allclose(exported(x), y, atol=1e-5)
    assert type(network.forward).__name__ == "method" and "_original_forward" not in vars(network)
    assert all(t.dtype in (torch.float32, torch.int64) for t in best(run.path).values())


def test_text_that_a_spreadsheet_would_run_is_made_harmless(tmp_path, bare):
    data = image_folder(tmp_path / "d", 6, kinds=("=cmd()", "@x", "\x1b[2J"))
    (data / "=cmd()" / "00.png").rename(data / "=cmd()" / "-1\n.png")
    words = Words()
    run = quick(data, tmp_path / "runs", words, epochs=1)
    for path in run.path.rglob("*.csv"):
        text = path.read_text()
        assert "\x1b" not in text and not any(c.startswith(("=", "@", "-")) for c in text.replace("\n", ",").split(","))
    assert {r["class"] for r in table(run.path / "per_class.csv")} == {"'=cmd()", "'@x", "\\x1b[2J"}
    assert [escape_cell(v) for v in ("+1", -1, 2.5, "a-b", "\ta")] == ["'+1", -1, 2.5, "a-b", "\\x09a"]


def test_a_gpu_that_is_not_there_is_refused(data, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="cannot use --device cuda: expected a device that torch finds here"):
        quick(data, tmp_path, device="cuda")


def test_the_command_in_env_json_makes_the_run_again(first, place):
    import json
    import shlex

    env = json.loads((first.path / "env.json").read_text())
    words = shlex.split(env["command"])
    assert words[:3] == ["skipway", "train", str(place / "kinds")]
    assert {"--epochs", "--batch-size", "--threads"} <= set(words) and QUICK["model"] in words
    assert env["threads"] == 1 and env["precision"] == "fp32"
