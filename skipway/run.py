"""Where the rooms meet: a Recipe becomes data, a network, a training and a run folder that explains itself."""

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from skipway import report
from skipway.console import Console, duration
from skipway.data import augment
from skipway.data.loader import Batches, mean_and_std
from skipway.data.pack import Packed, fingerprint, natural_packing, pack
from skipway.data.source import Source
from skipway.data.sources import open_source
from skipway.data.split import describe, hold_out, refuse_leaks
from skipway.errors import InputError, SkipwayError, StorageError, printable
from skipway.recipe import Recipe
from skipway.resume import Earlier, changed_data, earlier_run, old_splits
from skipway.runfolder import (
    draw_augmented,
    environment,
    new_folder,
    point_last,
    write_data,
    write_judgement,
    write_results,
)
from skipway.signals import StopFlag
from skipway.spec import Spec
from skipway.train.checkpoint import save_weights
from skipway.train.durable import Lock, check_writable, free_bytes, make_folder, write_file, write_json
from skipway.train.loop import fit
from skipway.train.metrics import Scores, score
from skipway.train.schedule import SCHEDULES
from skipway.train.trainer import LR, WEIGHT_DECAY, Settings, State, Trainer, has_bf16
from skipway.zoo import Network, auto_model, create_model, load

__all__ = ["Run", "train"]


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
        stop: a flag that ends the run in good order when it is set.
        options: fields of `skipway.Recipe`: epochs, batch_size, lr, seed, ...

    Raises:
        InputError: something given cannot be used. StorageError: the disk. NotFiniteError: the numbers.
        Interrupted: `stop` was set; the work was saved.
    """
    console, stop = console or Console(quiet=True), stop or StopFlag()
    given = {**options, **({} if model == "auto" else {"model": model})}
    if data is not None:
        given["data"] = os.fspath(data)
    earlier = earlier_run(Path(resume), given) if resume is not None else None
    values = Recipe.read(Path(config)) if config is not None else {}
    recipe = earlier.recipe if earlier else Recipe.of({**values, **given})
    if recipe.data is None:
        raise InputError(
            "train needs DATA: a built-in name such as digits, a folder of class folders, or parquet files"
        )
    torch.set_num_threads(recipe.threads or os.cpu_count() or 1)
    source = open_source(recipe.data, recipe.follow_links, recipe.allow_empty)
    packing = natural_packing(source, recipe.img_size, recipe.fit, recipe.max_pixels)
    name, row = auto_model(packing.size, source.count("train")) if recipe.model == "auto" else (recipe.model, {})
    folder = earlier.folder if earlier else new_folder(recipe, source.name, name)
    check_writable(folder)
    with Lock(folder), _crash_report(folder):
        if earlier is None:
            recipe = replace(recipe, name=folder.name)
        write_file(folder / "config.yaml", recipe.as_yaml().encode("utf-8"))
        point_last(folder)
        console.say(f"{'going on with' if earlier else 'run'} {folder}")
        for remark in earlier.remarks if earlier else ():
            console.say(f"  {remark}")
        work = _Work(recipe, folder, console, stop, earlier)
        return work.run(source, pack(source, packing, recipe.max_bad, console, stop), (name, row), allow_changed_data)


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
        mark = fingerprint(packed)
        if old is not None and old.state["fingerprint"] != mark:
            said = changed_data(old_splits(folder), packed)
            if not allow_changed:
                raise InputError(
                    f"the pictures of {printable(recipe.data)} are not those of before ({said}); put them "
                    "back, or go on "
                    "with --allow-changed-data, no longer exactly"
                )
            console.say(f"the pictures have changed ({said}): this run no longer equals an uninterrupted one")
        spec = self._spec(packed)
        write_data(folder, packed)
        network, settings = self._network(spec, model), self._settings(packed, recipe)
        batch_size = recipe.batch_size or default_batch_size(len(packed.splits["train"]))
        level = augment.choose(recipe.augment, packed.packing.packed, packed.packing.size, packed.mirrored)
        normalise = (spec.mean, spec.std)
        feed = Batches(packed, packed.splits["train"], batch_size, normalise, level=level, seed=recipe.seed)
        validation = Batches(packed, packed.splits["val"], 2 * batch_size, normalise)
        draw_augmented(folder, feed)
        write_json(folder / "env.json", environment(recipe, settings.device, settings.precision, repr(network)))
        self._introduce(packed, network, settings, batch_size, level)
        trainer = Trainer(network, settings)
        if old is not None:
            trainer.restore(old.tensors, old.state["state"])
            trainer.state.status = "running"
        plan = dict(network.plan)
        facts = {
            "fingerprint": mark,
            "plan": plan,
            "spec": spec.as_dict(),
            "recipe": recipe.as_dict(),
            **_machine(settings),
        }

        def keep(state: State, weights: dict[str, torch.Tensor] | None) -> None:
            if weights is not None:
                header = {"plan": plan, "spec": spec.as_dict(), "metrics": state.best, "data": packed.name}
                save_weights(folder / "weights" / "best.safetensors", weights, header)
            write_results(folder, state.history)

        make_folder(folder / "weights")
        with _memory_advice(batch_size):
            state = fit(
                trainer, feed, validation, folder / "weights" / "last",
                on_epoch=keep, facts=facts, console=console, stop=self.stop,
            )  # fmt: skip
        best = load(folder / "weights" / "best.safetensors").to(trainer.engine.device)
        judged, scores = self._judge(packed, trainer, best, validation, 2 * batch_size, normalise)
        write_judgement(folder, packed, scores, judged)
        metrics = {
            "val_accuracy": state.best["val_accuracy"],
            "val_loss": state.best["val_loss"],
            **({"test_accuracy": scores.accuracy, "test_loss": scores.loss} if judged == "test" else {}),
            "epochs": state.epoch,
            "best_epoch": state.best["epoch"],
            "seconds": round(state.total_seconds, 2),
            "images_per_second": _overall_speed(state),
            "status": state.status,
            "parameters": sum(p.numel() for p in network.parameters()),
            "augmentation": augment.describe(level, packed.packing.size),
            "schedule": [[i / 100, settings.lr * SCHEDULES[settings.schedule](i / 100)] for i in range(101)],
            "decided": {"batch_size": batch_size, **asdict(settings), "model": plan["name"]},
            "data": describe(packed),
        }
        write_json(folder / "metrics.json", metrics)
        page = report.write(folder)
        console.say(self._verdict(metrics, len(packed.splits["val"]), len(packed.splits.get("test", ())), page))
        return Run(folder, metrics, state.history)

    def _spec(self, packed: Packed) -> Spec:
        old = self.earlier.checkpoint if self.earlier else None
        if old is not None:
            spec = Spec.from_dict(old.state["spec"])
            if spec.class_names != packed.class_names:
                raise InputError(
                    f"the run knows the classes {_listed(spec.class_names)}, but the data has "
                    f"{_listed(packed.class_names)};"
                    " start a new run for other classes"
                )
            return spec
        mean, std = mean_and_std(packed.pixels, packed.splits["train"])
        packing = packed.packing
        return Spec(packing.channels, packing.size, packing.packed, mean, std, packed.class_names, packing.fit)

    def _network(self, spec: Spec, model: tuple[str, dict[str, Any]]) -> Network:
        torch.manual_seed(self.recipe.seed)
        name, row = model
        options = dict(row)
        if self.recipe.stem is not None or "stem" not in options and spec.size <= 96:
            options["stem"] = self.recipe.stem or "small"
        if self.recipe.drop_path:
            options["drop_path"] = self.recipe.drop_path
        network = create_model(name, spec.num_classes, spec.channels, **options)
        network.spec = spec
        return network

    def _settings(self, packed: Packed, recipe: Recipe) -> Settings:
        device = recipe.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cuda" and not torch.cuda.is_available():
            raise InputError(
                "--device cuda was asked for, but torch sees no GPU here; leave it out or install torch for CUDA"
            )
        precision = recipe.precision
        if precision == "auto":
            precision = "bf16" if has_bf16(device) else "fp32"
        batch_size = recipe.batch_size or default_batch_size(len(packed.splits["train"]))
        optimizer = "sgd" if recipe.optimizer == "auto" else recipe.optimizer
        whole = batch_size * recipe.accumulate
        scale = whole / 128 if optimizer == "sgd" else (whole / 128) ** 0.5
        return Settings(
            epochs=recipe.epochs,
            lr=recipe.lr or LR[optimizer] * min(scale, 4.0),
            optimizer=optimizer,
            momentum=recipe.momentum,
            weight_decay=WEIGHT_DECAY[optimizer] if recipe.weight_decay is None else recipe.weight_decay,
            schedule=recipe.schedule,
            label_smoothing=recipe.label_smoothing,
            ema=recipe.ema,
            clip=recipe.clip,
            accumulate=recipe.accumulate,
            patience=recipe.patience,
            time_limit=recipe.time_limit,
            seed=recipe.seed,
            precision=precision,
            device=device,
            save_every=recipe.save_every,
        )

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
        say(
            f"network: {network.plan['name']} ({network.plan['stem']} stem), {count:,} parameters, input "
            f"{'x'.join(map(str, spec.input_shape))}"
        )
        say(
            f"training: {settings.epochs} epochs, batch {batch_size}, {settings.optimizer} up to {settings.lr:.4g} "
            f"({settings.schedule}), augmentation: {augment.describe(level, spec.size)}, {settings.precision} on "
            f"{settings.device} with {torch.get_num_threads()} threads"
        )
        needed = 3 * 3 * 4 * count
        if (free := free_bytes(self.folder)) < needed:
            say(f"  mind: {free:,} bytes are free in {self.folder}, checkpoints may need {needed:,}")

    def _judge(
        self, packed: Packed, trainer: Trainer, best: Network, validation: Batches, batch_size: int, normalise: Any
    ) -> tuple[str, Scores]:
        """The best weights on the test set where there is one, else on the validation set."""
        judged, feed = "val", validation
        if len(packed.splits.get("test", ())):
            judged, feed = "test", Batches(packed, packed.splits["test"], batch_size, normalise)
        return judged, score(best, feed, trainer.engine.autocast, trainer.engine.device)

    def _verdict(self, metrics: dict[str, Any], val: int, test: int, page: Path) -> str:
        test_part = f", test accuracy {metrics['test_accuracy']:.2%} of {test:,}" if "test_accuracy" in metrics else ""
        return (
            f"{metrics['status']}: validation accuracy {metrics['val_accuracy']:.2%} of {val:,} (epoch "
            f"{metrics['best_epoch']}){test_part}, {duration(metrics['seconds'])}, "
            f"{metrics['images_per_second']:,.0f} pictures/s\nreport: {page}\nweights: "
            f"{self.folder}/weights/best.safetensors"
        )


def default_batch_size(count: int) -> int:
    """A batch size that gives a set of `count` pictures steps enough to learn from."""
    return 32 if count < 5_000 else 64 if count < 20_000 else 256


def _overall_speed(state: State) -> float:
    rows = state.history
    return round(
        sum(r["images_per_second"] * r["seconds"] for r in rows) / max(sum(r["seconds"] for r in rows), 1e-9), 1
    )


def _machine(settings: Settings) -> dict[str, Any]:
    return {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "device": settings.device,
        "precision": settings.precision,
    }


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(map(printable, names[:8])) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


@contextmanager
def _crash_report(folder: Path) -> Iterator[None]:
    """What nobody foresaw goes to crash.txt in the run folder, and one line to the user."""
    try:
        yield
    except SkipwayError:
        raise
    except Exception as error:
        write_file(folder / "crash.txt", traceback.format_exc().encode("utf-8", "backslashreplace"))
        raise SkipwayError(
            f"a fault of skipway's own ({type(error).__name__}: {printable(error)}); the details are in "
            f"{folder / 'crash.txt'}, please report them"
        ) from error


@contextmanager
def _memory_advice(batch_size: int) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error).lower()
        if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
            raise StorageError(
                f"memory ran out with batches of {batch_size}; the last checkpoint is whole: start again with "
                f"--batch-size {max(2, batch_size // 2)} --accumulate 2"
            ) from None
        raise
