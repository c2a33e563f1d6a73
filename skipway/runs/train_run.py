"""Where the rooms meet: a Recipe becomes data, a network, a training and a run folder that explains itself."""

import os
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skipway.distributed import collectives
from skipway.errors import InputError, Interrupted, printable
from skipway.models.load_model import load, restore
from skipway.models.network import Network
from skipway.models.prediction import average_views
from skipway.report import html
from skipway.runs.datamodule import DataModule, open_datamodule
from skipway.runs.defaults import device_for, settings_for
from skipway.runs.growth_phases import following, grow_trainer, growth_line, phases
from skipway.runs.recipe import Recipe
from skipway.runs.resume import Earlier, earlier_run, machine, run_folder
from skipway.runs.run_folder import (
    crash_report,
    environment,
    new_folder,
    point_last,
    taken_back,
    write_range_test,
    write_results,
)
from skipway.runs.signal_flow_callback import FlowWatch, draw_watched, refuse_watching
from skipway.training.checkpoint import save_weights
from skipway.training.loop import fit
from skipway.training.lr_finder import range_test
from skipway.training.metrics import compute_metrics, score
from skipway.training.oom_retry import retry_with_microbatches
from skipway.training.trainer import Settings, State, Trainer, preserve_global_state
from skipway.utils.atomic_files import Lock, check_writable, free_bytes, make_folder, write_file, write_json
from skipway.utils.console import Console, duration
from skipway.utils.devices import set_threads
from skipway.utils.signals import StopFlag

__all__ = ["Run", "train"]

_DECIDED = (
    "lr",
    "optimizer",
    "momentum",
    "weight_decay",
    "bias_lr_mult",
    "label_smoothing",
    "freeze_epochs",
    "layer_decay",
    "class_weights",
)


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, and what came out."""

    path: Path
    metrics: dict[str, Any]
    history: list[dict[str, Any]]

    @property
    def best(self) -> Path:
        """The weights of the best epoch, which `skipway.load` reads."""
        return self.path / "weights" / "best.safetensors"

    @property
    def report(self) -> Path:
        """The report, one HTML file."""
        return self.path / "report.html"

    def network(self) -> Network:
        """The trained network."""
        return load(self.best)


def train(
    data: str | os.PathLike[str] | None = None,
    model: str = "auto",
    *,
    config: str | os.PathLike[str] | None = None,
    resume: str | os.PathLike[str] | None = None,
    allow_changed_data: bool = False,
    console: Console | None = None,
    stop: StopFlag | None = None,
    transform: Callable[[Tensor], Tensor] | None = None,
    **options: Any,
) -> Run:
    """Train a network on `data` and leave a run folder that explains itself.

    Args:
        data: a built-in name, a folder of class folders, parquet files, `hf:org/name`, a table with `target`; may be
            left out when resuming.
        model: a name of `list_models()`, or "auto".
        config: a YAML file of recipe fields, which `options` go before.
        resume: a run folder to go on with, exactly as if it had never stopped; more `epochs` go on for longer.
        allow_changed_data: resume although the pictures are not those of before.
        console: where progress is said; default: nowhere.
        stop: a flag that ends the run in good order when it is set; default: SIGINT, SIGTERM and SIGUSR1 set one.
        transform: what training pictures (B, C, H, W) in 0 to 1 go through beside the recipe's augmentation, such as a
            module of kornia's; draws from torch's generator, which is seeded for each batch. To be given again when
            resuming.
        options: fields of `skipway.Recipe`: epochs, batch_size, lr, seed, ...

    Raises:
        InputError: something given cannot be used. StorageError: the disk. NotFiniteError: the numbers.
        Interrupted: `stop` was set; the work was saved.
    """
    console = console or Console(quiet=True)
    given = {k: _plain(v) for k, v in {"data": data, "model": model, **options}.items()}
    given = {k: v for k, v in given.items() if (k, v) not in (("data", None), ("model", "auto"))}
    if resume is not None and config is not None:
        raise InputError("give --resume or --config, not both: a run goes on with its own config.yaml")
    with preserve_global_state(), ExitStack() as held:
        stop = stop or held.enter_context(StopFlag())
        if stop.requested:
            raise Interrupted(f"stopped by {stop.name} before anything was done; start again")
        held.callback(collectives.leave_group)
        collectives.join_group(device_for(str(given.get("device", "auto"))))
        console = console if collectives.rank() == 0 else Console(quiet=True)
        earlier = None
        if resume is None:
            told = {**(Recipe.read(Path(config)) if config is not None else {}), **given}
            recipe = Recipe.of(told)
        else:
            folder = run_folder(Path(resume))
            # Before reading where it stands, which another run may be changing.
            collectives.run_on_rank0(lambda: held.enter_context(_hold(folder)) and None)
            earlier = earlier_run(folder, given)
            recipe = earlier.recipe
        collectives.assert_same({**recipe.as_dict(), "torch": torch.__version__})
        if recipe.data is None:
            raise InputError(
                "train needs DATA: a built-in name such as digits, a folder of class folders, parquet files or a table"
            )
        phases(recipe)  # refused before anything is decoded
        refuse_watching(recipe)
        new = earlier is None or earlier.checkpoint is None
        epochs_told = resume is not None or not told.keys().isdisjoint(("epochs", "grow"))
        datamodule = open_datamodule(recipe, new=new, epochs_told=epochs_told, transform=transform)
        recipe = datamodule.recipe
        set_threads(recipe.threads, table=datamodule.noun == "rows", say=console.print)
        if earlier is None:
            folder = collectives.run_on_rank0(lambda: _begun(recipe, datamodule, held))
        held.enter_context(crash_report(folder))
        console.print(f"{'going on with' if earlier else 'run'} {folder}")
        for remark in earlier.remarks if earlier else ():
            console.print(f"  {remark}")
        datamodule.prepare(console, stop)
        collectives.assert_same({f"the fingerprint of the {datamodule.noun}": datamodule.fingerprint})
        return _Work(datamodule, recipe, folder, console, stop, earlier).run(allow_changed_data)


def _begun(recipe: Recipe, datamodule: DataModule, held: ExitStack) -> Path:
    """The folder of a new run, held by this process, with its recipe in it."""
    folder = new_folder(recipe, datamodule.name, datamodule.model[0])
    held.enter_context(taken_back(folder))
    held.enter_context(_hold(folder))
    write_file(folder / "config.yaml", recipe.as_yaml().encode())
    return folder


def _hold(folder: Path) -> Lock:
    check_writable(folder)
    return Lock(folder)


def _plain(value: Any) -> Any:
    """A path as text, a number of NumPy as Python's."""
    if isinstance(value, np.generic):
        return value.item()
    return os.fspath(value) if isinstance(value, os.PathLike) else value


@dataclass
class _Work:
    """One call of `train` from the prepared data on."""

    datamodule: DataModule
    recipe: Recipe
    folder: Path
    console: Console
    stop: StopFlag
    earlier: Earlier | None

    def run(self, allow_changed: bool) -> Run:
        datamodule, recipe, folder, console = self.datamodule, self.recipe, self.folder, self.console
        old = self.earlier.checkpoint if self.earlier else None
        self._refuse_changed(allow_changed)
        network, fine = self._network()
        spec, batch_size = network.spec, datamodule.usual_batch()
        assert spec is not None
        settings = settings_for(
            recipe,
            network.plan,
            batch_size,
            fine=fine,
            counts=datamodule.class_counts(),
            table=datamodule.noun == "rows",
        )
        if old is not None:  # what was left open stays as it was decided then
            batch_size = old.state["batch_size"]
            settings = replace(settings, **{k: old.state["settings"][k] for k in _DECIDED})
        datamodule.setup(network, batch_size, settings.device, old.state if old else None)
        feed, validation = datamodule.feed("train", train=True), datamodule.feed("val")
        if old is None:
            datamodule.fit_first_layer(network, feed)
        # From here on nothing is refused, so the folder may change.
        told = self.earlier.told if self.earlier else recipe
        collectives.run_on_rank0(lambda: self._write_beginning(told, feed, settings, network))
        self._introduce(network, settings, batch_size)
        watch = FlowWatch(recipe, folder, datamodule, batch_size, console)
        watch.begin(network, fresh=old is None)
        trainer = Trainer(network, settings, datamodule.name_of, datamodule.task(settings))
        if old is None and recipe.lr == "auto":
            settings = self._find_rate(trainer, feed)
        if old is not None:
            trainer.restore(old.tensors, old.state["state"])
            self._open(trainer.state)
        facts = {
            "fingerprint": datamodule.fingerprint,
            "plan": dict(network.plan),
            "spec": spec.as_dict(),
            "recipe": told.as_dict(),
            "settings": asdict(settings),
            "batch_size": batch_size,
            "grown": old.state.get("grown", []) if old else [],
            **datamodule.facts(),
            **machine(settings.device, settings.precision),
        }

        def keep(state: State, weights: dict[str, Tensor] | None) -> None:
            if weights is not None:
                header = {"plan": facts["plan"], "spec": facts["spec"], "metrics": state.best, "data": datamodule.name}
                save_weights(folder / "weights" / "best.safetensors", weights, header)
            write_results(folder, state.history)
            watch.take(network, state.epoch)

        last = folder / "weights" / "last"
        common: dict[str, Any] = {"on_epoch": keep, "facts": facts, "console": console, "stop": self.stop}
        try:
            while True:
                trainer.until, to = following(recipe, network.plan)
                retry_with_microbatches(
                    partial(fit, trainer, feed, validation, last, **common), trainer, last, batch_size, console
                )
                if not to or trainer.state.status != "running":
                    break
                trainer, network, note = grow_trainer(trainer, network, to, recipe.seed)
                facts |= {"plan": dict(network.plan), "grown": [*facts["grown"], note]}
                console.print(f"  {growth_line(network, note)}")
        except RuntimeError as error:
            if not collectives.is_peer_lost(error):
                raise
            time.sleep(1)  # the launcher looks several times a second: it shall find first who is gone, and name that
            raise Interrupted(
                "another process of this training is gone; what is saved is whole: go on with --resume "
                f"{printable(folder)}"
            ) from None
        first = collectives.rank() == 0
        collectives.leave_group()
        return self._finish(trainer, facts) if first else Run(folder, {}, trainer.state.history)

    def _write_beginning(self, told: Recipe, feed: Any, settings: Settings, network: Network) -> None:
        folder = self.folder
        write_file(folder / "config.yaml", told.as_yaml().encode())
        point_last(folder)
        self.datamodule.write_data(folder, feed)
        env = environment(self.recipe, settings.device, settings.precision, repr(network))
        write_json(folder / "env.json", env)
        make_folder(folder / "weights")

    def _finish(self, trainer: Trainer, facts: dict[str, Any]) -> Run:
        """Judge the best weights as `load` gives them, in full precision, and write what there is to say of the run."""
        folder, datamodule, state, settings = self.folder, self.datamodule, trainer.state, trainer.settings
        best = load(folder / "weights" / "best.safetensors").to(  # type: ignore[call-overload]
            device=trainer.device, memory_format=torch.channels_last
        )
        judging = average_views(best, best.require_image_spec()) if self.recipe.tta else best

        def poll() -> None:
            if self.stop.requested:
                raise Interrupted(
                    f"stopped by {self.stop.name} while judging, the training is done and saved; get the report with "
                    f"--resume {printable(folder)}"
                )

        metrics: dict[str, Any] = {}
        splits = [split for split in ("val", "test") if datamodule.count(split)]
        for split in splits:
            scores = score(judging, datamodule.feed(split), trainer.task, nullcontext, trainer.device, poll)
            metrics |= {f"{split}_{name}": value for name, value in compute_metrics(scores).items()}
        datamodule.write_judgement(folder, scores, splits[-1])
        metrics |= {
            "epochs": state.epoch,
            "best_epoch": state.best["epoch"],
            "seconds": round(state.total_seconds, 2),
            "samples_per_second": _overall_speed(state),
            "status": state.status,
            "parameters": sum(p.numel() for p in best.parameters()),
            **({"grown": facts["grown"]} if facts["grown"] else {}),
            "augmentation": datamodule.augmentation(),
            "schedule": [[i / 100, *trainer.rates(i / 100)] for i in range(101)],
            "resolved": {"batch_size": facts["batch_size"], **asdict(settings), "model": best.plan["name"]},
            "data": datamodule.describe(),
            **datamodule.extra_metrics(),
        }
        write_json(folder / "metrics.json", metrics)
        if facts["grown"]:  # the network is another than at the beginning
            write_json(folder / "env.json", environment(self.recipe, settings.device, settings.precision, repr(best)))
        draw_watched(folder)
        page = html.write(folder)
        self.console.print(self._verdict(metrics, trainer.task.primary_metric, page))
        return Run(folder, metrics, state.history)

    def _find_rate(self, trainer: Trainer, feed: Any) -> Settings:
        """The settings with the learning rate that a range test suggests; the test is drawn into the run folder."""
        found = range_test(trainer, feed, poll=self._poll)
        trainer.settings = replace(trainer.settings, lr=found.suggestion)
        collectives.run_on_rank0(lambda: write_range_test(self.folder, found.as_dict()))
        self.console.print(
            f"  learning rate: {found.suggestion:.3g} by the range test, between its valley at {found.valley:.3g} and "
            f"its steepest fall at {found.steepest:.3g}"
        )
        return trainer.settings

    def _poll(self) -> None:
        if self.stop.requested:
            raise Interrupted(f"stopped by {self.stop.name} before the first step; start again")

    def _refuse_changed(self, allow_changed: bool) -> None:
        """Refuse to go on with other data than before, unless that is allowed."""
        old, noun = self.earlier.checkpoint if self.earlier else None, self.datamodule.noun
        if old is not None and old.state["fingerprint"] != self.datamodule.fingerprint:
            said = self.datamodule.changed(self.folder)
            if not allow_changed:
                raise InputError(
                    f"the {noun} of {printable(self.recipe.data)} are not those of before ({said}); put them back, "
                    "or go on with --allow-changed-data, no longer exactly"
                )
            self.console.print(f"  the {noun} have changed ({said}): no longer to the bit as without a stop")

    def _open(self, state: State) -> None:
        """Let a run that had ended train on where it was told to end elsewhere."""
        if state.epoch >= self.recipe.epochs:
            state.status = "finished" if state.status == "running" else state.status
        elif self.earlier is not None and self.earlier.reopened:
            state.status = "running"

    def _network(self) -> tuple[Network, bool]:
        old = self.earlier.checkpoint if self.earlier else None
        if old is not None:  # the plan, not the name: what a name or "auto" stands for may change with the version
            self.datamodule.spec(old.state["spec"])
            start = len("network.")
            weights = {k[start:]: v for k, v in old.tensors.items() if k.startswith("network.")}
            plan, known = old.state["plan"], old.state["spec"]
            return restore(weights, {"plan": plan, "spec": known}, printable(old.path)), False
        torch.manual_seed(self.recipe.seed)
        return self.datamodule.network(self.console)

    def _introduce(self, network: Network, settings: Settings, batch_size: int) -> None:
        """Say what was decided, what is odd about the data, and whether the disk will do."""
        say = self.console.print
        for line in self.datamodule.lines():
            say(line)
        count = sum(p.numel() for p in network.parameters())
        spec = network.spec
        assert spec is not None
        stem = f" ({network.plan['stem']} stem)" if "stem" in network.plan else ""
        say(
            f"network: {network.plan['name']}{stem}, {count:,} parameters, input {'x'.join(map(str, spec.input_shape))}"
        )
        tested = self.recipe.lr == "auto" and self.earlier is None
        highest = "what a range test will find" if tested else f"{settings.lr:.4g}"
        say(
            f"training: {settings.epochs} epochs, batch {batch_size}, {settings.optimizer} up to {highest} "
            f"({settings.schedule}), augmentation: {self.datamodule.augmentation()}, {settings.precision} on "
            f"{settings.device} with {torch.get_num_threads()} threads"
        )
        copies = 2 + (settings.optimizer == "adamw") + (settings.ema is not None)
        needed = 3 * 4 * count * copies  # the checkpoint being written and the two that are kept
        if (free := free_bytes(self.folder)) < needed:
            say(f"  mind: {free:,} bytes are free in {self.folder}, checkpoints may need {needed:,}")

    def _verdict(self, metrics: dict[str, Any], figure: str, page: Path) -> str:
        percent = figure == "accuracy"

        def said(split: str) -> str:
            value, count = metrics[f"{split}_{figure}"], self.datamodule.count(split)
            return f"{figure} {value:.2%} of {count:,}" if percent else f"{figure} {value:.4f} of {count:,}"

        test_part = f", test {said('test')}" if f"test_{figure}" in metrics else ""
        other = metrics.get("baseline", {})
        beside = f" ({other['name']}: {other[f'val_{figure}']:.4g})" if f"val_{figure}" in other else ""
        return (
            f"{metrics['status']}: validation {said('val')}{beside} (epoch {metrics['best_epoch']}){test_part}, "
            f"{duration(metrics['seconds'])}, {metrics['samples_per_second']:,.0f} {self.datamodule.noun}/s\n"
            f"report: {page}\nweights: {self.folder}/weights/best.safetensors"
        )


def _overall_speed(state: State) -> float:
    rows = state.history
    return round(
        sum(r["samples_per_second"] * r["seconds"] for r in rows) / max(sum(r["seconds"] for r in rows), 1e-9), 1
    )
