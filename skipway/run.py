"""Where the rooms meet: a Recipe becomes data, a network, a training and a run folder that explains itself."""

import os
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from skipway import report
from skipway.console import Console, duration
from skipway.data import augment
from skipway.data.loader import Augmentation, Batches, mean_and_std
from skipway.data.pack import Packed, fingerprint, natural_packing, pack
from skipway.data.source import Source
from skipway.data.sources import open_source
from skipway.data.split import describe, hold_out, refuse_leaks
from skipway.decide import batch_size_for, settings_for
from skipway.errors import InputError, Interrupted, printable
from skipway.models.resnet9 import whiten
from skipway.network import Network
from skipway.recipe import Recipe
from skipway.resume import Earlier, changed_data, earlier_run, machine, old_splits, run_folder
from skipway.runfolder import (
    crash_report,
    draw_augmented,
    environment,
    memory_advice,
    new_folder,
    point_last,
    taken_back,
    write_data,
    write_judgement,
    write_results,
)
from skipway.signals import StopFlag
from skipway.spec import Spec
from skipway.stored import load, restore
from skipway.training.checkpoint import save_weights
from skipway.training.durable import Lock, check_writable, free_bytes, make_folder, write_file, write_json
from skipway.training.loop import fit
from skipway.training.metrics import ClassScores, score
from skipway.training.trainer import Settings, State, Trainer, as_found
from skipway.zoo import auto_model, create_model, list_models, options_for

__all__ = ["Run", "train"]

_DECIDED = (
    "lr", "optimizer", "momentum", "weight_decay", "bias_lr", "label_smoothing", "freeze", "lr_decay", "class_weights",
)  # fmt: skip
_WHITENED = 5000  # training pictures that a whitening stem is fitted to


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
    **options: Any,
) -> Run:
    """Train a network on `data` and leave a run folder that explains itself.

    Args:
        data: a built-in name, a folder of class folders, parquet files, `hf:org/name`; may be left out when resuming.
        model: a name of `list_models()`, or "auto".
        config: a YAML file of recipe fields, which `options` go before.
        resume: a run folder to go on with, exactly as if it had never stopped; more `epochs` go on for longer.
        allow_changed_data: resume although the pictures are not those of before.
        console: where progress is said; default: nowhere.
        stop: a flag that ends the run in good order when it is set; default: SIGINT, SIGTERM and SIGUSR1 set one.
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
    with as_found(), ExitStack() as held:
        stop = stop or held.enter_context(StopFlag())
        if stop.requested:
            raise Interrupted(f"stopped by {stop.name} before anything was done; start again")
        earlier = None
        if resume is None:
            recipe = Recipe.of({**(Recipe.read(Path(config)) if config is not None else {}), **given})
        else:
            folder = run_folder(Path(resume))
            held.enter_context(_hold(folder))  # before reading where it stands, which another run may be changing
            earlier = earlier_run(folder, given)
            recipe = earlier.recipe
        if recipe.data is None:
            raise InputError(
                "train needs DATA: a built-in name such as digits, a folder of class folders, or parquet files"
            )
        torch.set_num_threads(recipe.threads or os.cpu_count() or 1)
        source = open_source(recipe.data, recipe.follow_links, recipe.allow_empty)
        packing = natural_packing(source, _sizes(recipe)[1], recipe.fit, recipe.max_pixels)
        name, row = auto_model(packing.size, source.count("train")) if recipe.model == "auto" else (recipe.model, {})
        if earlier is None:
            if name not in list_models():
                create_model(name)  # refuses the name before anything is decoded
            folder = new_folder(recipe, source.name, name)
            held.enter_context(taken_back(folder))
            held.enter_context(_hold(folder))
            write_file(folder / "config.yaml", recipe.as_yaml().encode())
        held.enter_context(crash_report(folder))
        console.say(f"{'going on with' if earlier else 'run'} {folder}")
        for remark in earlier.remarks if earlier else ():
            console.say(f"  {remark}")
        work = _Work(recipe, folder, console, stop, earlier)
        return work.run(source, pack(source, packing, recipe.max_bad, console, stop), (name, row), allow_changed_data)


def _sizes(recipe: Recipe) -> tuple[int | None, int | None]:
    """The size in the first epoch, where it grows, and the full one, where it is told."""
    if isinstance(recipe.img_size, str):
        first, _, full = recipe.img_size.partition(":")
        return int(first), int(full)
    return None, recipe.img_size


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
    """One call of `train` from the packed pictures on."""

    recipe: Recipe
    folder: Path
    console: Console
    stop: StopFlag
    earlier: Earlier | None

    def run(self, source: Source, packed: Packed, model: tuple[str, dict[str, Any]], allow_changed: bool) -> Run:
        recipe, folder, console = self.recipe, self.folder, self.console
        old = self.earlier.checkpoint if self.earlier else None
        refuse_leaks(packed, recipe.allow_duplicates)
        hold_out(packed, recipe.val_fraction, recipe.seed)
        mark = self._data_mark(packed, allow_changed)
        spec = self._spec(packed)
        network = self._network(spec, model)
        batch_size = batch_size_for(recipe, len(packed.splits["train"]))
        counts = np.bincount(packed.labels[packed.splits["train"]], minlength=len(packed.class_names)).tolist()
        settings = settings_for(recipe, network.plan, batch_size, counts=counts)
        level = augment.choose(recipe.augment, packed.packing.packed, packed.packing.size, packed.mirrored)
        if old is not None:  # what was left open stays as it was decided then
            batch_size, level = old.state["batch_size"], old.state["level"]
            settings = replace(settings, **{k: old.state["settings"][k] for k in _DECIDED})
        normalise = (spec.mean, spec.std)
        change, device = self._augmentation(level), settings.device
        feed = Batches(packed, packed.splits["train"], batch_size, normalise, change, device)
        validation = Batches(packed, packed.splits["val"], 2 * batch_size, normalise, device=device)
        if old is None:
            whiten(network, feed.plain(_WHITENED))
        # From here on nothing is refused, so the folder may change.
        told = self.earlier.told if self.earlier else recipe
        write_file(folder / "config.yaml", told.as_yaml().encode())
        point_last(folder)
        write_data(folder, packed)
        draw_augmented(folder, feed)
        write_json(folder / "env.json", environment(recipe, settings.device, settings.precision, repr(network)))
        self._introduce(packed, network, settings, batch_size, level)
        trainer = Trainer(network, settings, packed.keys.__getitem__)
        if old is not None:
            trainer.restore(old.tensors, old.state["state"])
            self._open(trainer.state)
        facts = {
            "fingerprint": mark,
            "plan": dict(network.plan),
            "spec": spec.as_dict(),
            "recipe": told.as_dict(),
            "settings": asdict(settings),
            "batch_size": batch_size,
            "level": level,
            **machine(settings.device, settings.precision),
        }

        def keep(state: State, weights: dict[str, torch.Tensor] | None) -> None:
            if weights is not None:
                header = {"plan": facts["plan"], "spec": facts["spec"], "metrics": state.best, "data": packed.name}
                save_weights(folder / "weights" / "best.safetensors", weights, header)
            write_results(folder, state.history)

        make_folder(folder / "weights")
        with memory_advice(batch_size, settings.accumulate):
            fit(
                trainer, feed, validation, folder / "weights" / "last",
                on_epoch=keep, facts=facts, console=console, stop=self.stop,
            )  # fmt: skip
        facts |= {"parameters": sum(p.numel() for p in network.parameters()), "size": packed.packing.size}
        return self._finish(packed, trainer, validation, facts)

    def _finish(self, packed: Packed, trainer: Trainer, validation: Batches, facts: dict[str, Any]) -> Run:
        """Judge the best weights as `load` gives them, in full precision, and write what there is to say of the run."""
        folder, state, settings = self.folder, trainer.state, trainer.settings
        best = load(folder / "weights" / "best.safetensors").to(trainer.engine.device)

        def poll() -> None:
            if self.stop.requested:
                raise Interrupted(
                    f"stopped by {self.stop.name} while judging, the training is done and saved; get the report with "
                    f"--resume {printable(folder)}"
                )

        def judge(feed: Batches) -> ClassScores:
            return score(best, feed, trainer.task, nullcontext, trainer.engine.device, poll)

        scores, judged = judge(validation), "val"
        metrics: dict[str, Any] = {"val_accuracy": scores.accuracy, "val_loss": scores.loss}
        if len(packed.splits.get("test", ())):
            spec = best._need_spec()
            scores = judge(Batches(packed, packed.splits["test"], 2 * facts["batch_size"], (spec.mean, spec.std)))
            metrics |= {"test_accuracy": scores.accuracy, "test_loss": scores.loss}
            judged = "test"
        write_judgement(folder, packed, scores, judged)
        metrics |= {
            "epochs": state.epoch,
            "best_epoch": state.best["epoch"],
            "seconds": round(state.total_seconds, 2),
            "images_per_second": _overall_speed(state),
            "status": state.status,
            "parameters": facts["parameters"],
            "augmentation": augment.describe(facts["level"], facts["size"]),
            "schedule": [[i / 100, settings.lr * trainer.course(i / 100)] for i in range(101)],
            "decided": {"batch_size": facts["batch_size"], **asdict(settings), "model": facts["plan"]["name"]},
            "data": describe(packed),
        }
        write_json(folder / "metrics.json", metrics)
        page = report.write(folder)
        self.console.say(self._verdict(metrics, len(packed.splits["val"]), len(packed.splits.get("test", ())), page))
        return Run(folder, metrics, state.history)

    def _augmentation(self, parts: str) -> Augmentation:
        recipe = self.recipe
        return Augmentation(
            parts, recipe.seed, recipe.mixup, recipe.cutmix, _sizes(recipe)[0] or 0, recipe.epochs,
            recipe.balance == "sampling",
        )  # fmt: skip

    def _data_mark(self, packed: Packed, allow_changed: bool) -> str:
        """The data's fingerprint; refused where it is not that of before."""
        mark = fingerprint(packed)
        old = self.earlier.checkpoint if self.earlier else None
        if old is not None and old.state["fingerprint"] != mark:
            said = changed_data(old_splits(self.folder), packed)
            if not allow_changed:
                raise InputError(
                    f"the pictures of {printable(self.recipe.data)} are not those of before ({said}); put them back, "
                    "or go on with --allow-changed-data, no longer exactly"
                )
            self.console.say(f"  the pictures have changed ({said}): no longer to the bit as without a stop")
        return mark

    def _open(self, state: State) -> None:
        """Let a run that had ended train on where it was told to end elsewhere."""
        if state.epoch >= self.recipe.epochs:
            state.status = "finished" if state.status == "running" else state.status
        elif self.earlier is not None and self.earlier.reopened:
            state.status = "running"

    def _spec(self, packed: Packed) -> Spec:
        old = self.earlier.checkpoint if self.earlier else None
        if old is not None:
            spec = Spec.from_dict(old.state["spec"])
            if spec.class_names != packed.class_names:
                raise InputError(
                    f"the run knows the classes {_listed(spec.class_names)}, but the data has "
                    f"{_listed(packed.class_names)}; start a new run for other classes"
                )
            return spec
        mean, std = mean_and_std(packed.pixels, packed.splits["train"])
        packing = packed.packing
        preparation = (packing.fit, packing.interpolation)
        return Spec(packing.channels, packing.size, packing.packed, mean, std, packed.class_names, *preparation)

    def _network(self, spec: Spec, model: tuple[str, dict[str, Any]]) -> Network:
        old = self.earlier.checkpoint if self.earlier else None
        if old is not None:  # the plan, not the name: what a name or "auto" stands for may change with the version
            start = len("network.")
            weights = {k[start:]: v for k, v in old.tensors.items() if k.startswith("network.")}
            return restore(weights, {"plan": old.state["plan"], "spec": old.state["spec"]}, printable(old.path))
        torch.manual_seed(self.recipe.seed)
        name, row = model
        options = dict(row)
        if self.recipe.stem is not None:
            options["stem"] = self.recipe.stem
        if self.recipe.drop_path:
            options["drop_path"] = self.recipe.drop_path
        network = create_model(name, **options_for(name, spec, options))
        network.spec = spec
        return network

    def _introduce(self, packed: Packed, network: Network, settings: Settings, batch_size: int, level: str) -> None:
        """Say what was decided, what is odd about the data, and whether the disk will do."""
        counts = ", ".join(f"{len(i):,} {split}" for split, i in packed.splits.items())
        say = self.console.say
        say(f"data: {packed.name}, {len(packed.class_names)} classes, {counts} pictures, {packed.sizes}")
        if packed.skipped:
            say(f"  {len(packed.skipped):,} pictures could not be read and are left out: see skipped.csv")
        for note, count in packed.notes.most_common():
            say(f"  {count:,} {note}")
        for warning in describe(packed)["warnings"]:
            say(f"  mind: {warning}")
        count = sum(p.numel() for p in network.parameters())
        spec = network.spec
        assert spec is not None
        stem = f" ({network.plan['stem']} stem)" if "stem" in network.plan else ""
        say(
            f"network: {network.plan['name']}{stem}, {count:,} parameters, input {'x'.join(map(str, spec.input_shape))}"
        )
        say(
            f"training: {settings.epochs} epochs, batch {batch_size}, {settings.optimizer} up to {settings.lr:.4g} "
            f"({settings.schedule}), augmentation: {augment.describe(level, spec.size)}, {settings.precision} on "
            f"{settings.device} with {torch.get_num_threads()} threads"
        )
        copies = 2 + (settings.optimizer == "adamw") + (settings.ema is not None)
        needed = 3 * 4 * count * copies  # the checkpoint being written and the two that are kept
        if (free := free_bytes(self.folder)) < needed:
            say(f"  mind: {free:,} bytes are free in {self.folder}, checkpoints may need {needed:,}")

    def _verdict(self, metrics: dict[str, Any], val: int, test: int, page: Path) -> str:
        test_part = f", test accuracy {metrics['test_accuracy']:.2%} of {test:,}" if "test_accuracy" in metrics else ""
        return (
            f"{metrics['status']}: validation accuracy {metrics['val_accuracy']:.2%} of {val:,} (epoch "
            f"{metrics['best_epoch']}){test_part}, {duration(metrics['seconds'])}, "
            f"{metrics['images_per_second']:,.0f} pictures/s\nreport: {page}\nweights: "
            f"{self.folder}/weights/best.safetensors"
        )


def _overall_speed(state: State) -> float:
    rows = state.history
    return round(
        sum(r["images_per_second"] * r["seconds"] for r in rows) / max(sum(r["seconds"] for r in rows), 1e-9), 1
    )


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(map(printable, names[:8])) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
