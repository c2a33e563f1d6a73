import pytest
import torch
from small_runs import QUICK, StopAt, Words, image_folder, numbers, quick, same_runs, train
from tiny_training import Feed, network, plain_network, same, settings

from skipway.errors import InputError, Interrupted, StorageError
from skipway.runs.recipe import Recipe
from skipway.runs.resume import read_earlier_run
from skipway.training import checkpoint, compilation, compiled_model
from skipway.training.compilation import begin_compilation, refuse_late_failure
from skipway.training.loop import fit
from skipway.training.losses import Classification
from skipway.training.oom_retry import retry_with_microbatches
from skipway.training.trainer import Trainer
from skipway.utils.console import Console
from skipway.utils.stop_signals import StopFlag

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def traced(monkeypatch):
    """Trace networks as torch.compile does, without generating code, and keep the batch sizes of the graphs."""
    graphs = []

    def backend(graph, inputs, **options):
        images = max((x for x in inputs if x.dim() == 4), key=lambda x: x.shape[-1])  # larger than any kernel
        graphs.append(len(images))
        return graph.forward

    monkeypatch.setattr(compiled_model, "BACKEND", backend)
    torch._dynamo.reset()
    return graphs


@pytest.fixture
def broken(monkeypatch):
    def backend(graph, inputs, **options):
        raise RuntimeError("no working compiler\nwas found")

    monkeypatch.setattr(compiled_model, "BACKEND", backend)
    torch._dynamo.reset()


def begun(trainer, option="auto", earlier=None, growth=(1.0, 1.0), is_table=False):
    return begin_compilation(trainer, Feed(), option=option, earlier=earlier, growth=growth, is_table=is_table)


def fitted(trainer, folder):
    feeds = Feed(), Feed(10, 5, shuffle=False)
    quiet = {"on_epoch": lambda *_: None, "facts": {}, "console": Console(quiet=True), "stop": StopFlag()}
    fit(trainer, *feeds, folder, **quiet)
    return trainer


def test_compiled_steps_train_the_same_network_and_only_full_batches_are_compiled(traced, tmp_path):
    def trained(option):
        trainer = Trainer(network(), settings(ema=0.9, clip_grad=1.0))
        before = {name: value.clone() for name, value in trainer.tensors().items()}
        decision = begun(trainer, option)
        assert same(before, trainer.tensors()) and trainer.state.total_seconds > 0
        return fitted(trainer, tmp_path / option), decision

    (compiled, decision), (plain, _) = trained("on"), trained("off")
    assert decision.value == "on" and decision.reason.startswith("compiled in ")
    assert set(compiled.tensors()) == set(plain.tensors()) and type(compiled.network) is type(plain.network)
    for name, value in compiled.tensors().items():
        assert torch.allclose(value, plain.tensors()[name], atol=1e-5), name
    assert traced == [8]  # not the last batch of 10 samples, and no evaluation


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("compiled") / "data", count=10)


def test_a_resumed_compiled_run_equals_an_uninterrupted_one(traced, data, tmp_path):
    options = {"compile": "on", "epochs": 3, "batch_size": 8, "dropout": 0.2, "drop_path": 0.2, "save_every": 0.0}
    whole, lines = quick(data, tmp_path, console=(words := Words()), name="whole", **options), words
    assert "  compile: on, compiled in " in lines
    assert numbers(whole.path)["resolved"]["compile"] == "on"
    with pytest.raises(Interrupted):
        quick(data, tmp_path, name="stopped", stop=StopAt(40), **options)
    state = checkpoint.load_checkpoint(tmp_path / "stopped" / "weights" / "last").state
    assert state["compile"] == "on" and 0 < state["state"]["step"] < 9
    traced.clear()
    torch._dynamo.reset()
    train(resume=tmp_path / "stopped")
    assert traced and same_runs(whole.path, tmp_path / "stopped")


def test_resuming_with_another_decision_is_reported(data, tmp_path):
    run = quick(data, tmp_path, epochs=1, batch_size=8)
    assert numbers(run.path)["resolved"]["compile"] == "off"

    def remarks(**options):
        return "\n".join(read_earlier_run(run.path, {"epochs": 2, **options}).remarks)

    assert "compile changed from off to on" in remarks(compile="on")
    assert "compile" not in remarks(compile="off") + remarks(compile="auto")


def test_code_that_cannot_be_compiled_is_one_line(broken):
    trainer = Trainer(network(), settings())
    decision = begun(trainer, "auto", earlier="on")
    assert (decision.value, decision.reason) == ("off", "torch.compile failed: no working compiler")
    assert trainer.compiled is None
    with pytest.raises(InputError, match="cannot use --compile on: expected code .*, got no working compiler. Use"):
        begun(trainer, "on")


def test_a_python_that_torch_cannot_compile_is_one_line(monkeypatch):
    def refuse(*args, **options):
        raise RuntimeError("torch.compile is not supported on Python 3.99+")

    monkeypatch.setattr(torch, "compile", refuse)
    decision = begun(Trainer(network(), settings()), "auto", earlier="on")
    assert decision.reason == "torch.compile failed: torch.compile is not supported on Python 3.99+"


def test_a_later_failure_names_the_option(traced, monkeypatch):
    trainer = Trainer(network(), settings())
    begun(trainer, "on")

    def backend(graph, inputs, **options):
        raise RuntimeError("no room for another kernel")

    monkeypatch.setattr(compiled_model, "BACKEND", backend)
    trainer.compile_model()
    message = "cannot compile step 1: expected .*, got no room for another kernel. Resume with --compile off."
    with pytest.raises(InputError, match=message), refuse_late_failure(trainer):
        trainer.compute(Feed().x[:6])
    with pytest.raises(RuntimeError, match="size mismatch"), refuse_late_failure(trainer):
        raise RuntimeError("size mismatch")


class Small(Classification):
    """A task with memory for three samples."""

    def loss(self, outputs, y, weights=None):
        if len(y) > 3:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().loss(outputs, y, weights)


def test_a_compiled_run_is_retried_with_microbatches(traced, tmp_path):
    trainer = Trainer(network(), settings(epochs=1), task=Small())
    assert begun(trainer, "on").is_on  # the batch that does not fit is left to the training
    folder = tmp_path / "last"
    retry_with_microbatches(
        lambda: fitted(trainer, folder).state, trainer, folder=folder, batch_size=8, console=Console(quiet=True)
    )
    assert trainer.state.num_microbatches == 4 and trainer.state.status == "finished"
    assert set(traced) == {8, 4, 2}


@pytest.mark.parametrize(("option", "value"), [("fsdp", True), ("recompute", "auto"), ("recompute", 2)])
def test_options_that_exclude_it(option, value):
    trainer = Trainer(network(), settings())
    trainer.settings = settings(**{option: value})
    trainer.device = torch.device("cuda")
    for earlier in (None, "on"):  # a resumed run may set the option
        decision = begun(trainer, earlier=earlier)
        assert (decision.value, decision.reason) == ("off", f"it excludes --{option}")


def test_exact_runs_on_cuda_exclude_it(monkeypatch):
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    trainer = Trainer(network(), settings())
    trainer.device = torch.device("cuda")
    assert begun(trainer).reason == "it excludes --deterministic"


def test_on_is_refused_with_an_option_that_excludes_it(data, tmp_path):
    for option, value in (("recompute", "auto"), ("deterministic", True)):
        message = f"cannot use --compile on: expected no --{option}, got --{option}. Drop one of them."
        with pytest.raises(InputError, match=message):
            quick(data, tmp_path, compile="on", **{option: value})


def test_auto_measures_no_step_where_it_cannot_gain(monkeypatch):
    monkeypatch.setattr(compilation, "_training_seconds", None)
    trainer = Trainer(plain_network(), settings())
    assert begun(trainer) == compilation.Compilation(False, "")  # a CPU
    trainer.device = torch.device("cuda")
    assert begun(trainer, is_table=True).reason == ""
    assert begun(trainer).reason == "the run has only 6 steps"


@pytest.mark.parametrize(("seconds", "is_on"), [(10, False), (250, False), (400, True), (36000, True)])
def test_auto_compiles_if_the_saving_is_twice_the_cost(monkeypatch, seconds, is_on):
    monkeypatch.setattr(compilation, "_training_seconds", lambda *_: float(seconds))
    trainer = Trainer(plain_network(), settings())  # two layers with weights: 11 s for each of two sizes
    trainer.device = torch.device("cuda")
    decision = compilation._decide(
        trainer, Feed(), option="auto", earlier=None, growth=(0.0,) * 50 + (1.0,) * 50, is_table=False
    )
    assert decision.is_on is is_on
    assert ("it saves about" if is_on else "it would save about") in decision.reason and "22 s" in decision.reason


def test_the_seconds_of_a_training_follow_its_measured_steps_and_image_sizes(monkeypatch):
    trainer, seconds = Trainer(network(), settings()), {0: 2.0, compilation._LATEST: 6.0}
    before = {name: value.clone() for name, value in trainer.tensors().items()}
    measured = compilation._training_seconds(trainer, Feed(), [1.0])
    assert (
        measured > 0 and same(before, trainer.tensors()) and all(p.grad is None for p in trainer.network.parameters())
    )
    monkeypatch.setattr(compilation, "_step_seconds", lambda trainer, train, epoch: seconds[epoch])
    assert compilation._training_seconds(trainer, Feed(), [0.0, 0.5, 1.0]) == 3 * (2 + 4 + 6)

    def lack(*_):
        raise StorageError("another error")

    monkeypatch.setattr(compilation, "_step_seconds", lack)
    with pytest.raises(StorageError):
        compilation._training_seconds(trainer, Feed(), [1.0])


def test_a_batch_that_does_not_fit_has_no_seconds():
    trainer = Trainer(network(), settings(), task=Small())
    assert compilation._training_seconds(trainer, Feed(), [1.0]) is None


def test_the_recipe_names_the_choices():
    assert Recipe().compile == "auto" and "compile" not in QUICK
    with pytest.raises(InputError, match="compile: expected"):
        Recipe(compile="yes")
