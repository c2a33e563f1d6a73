"""What can be done with a trained network and with data: predict, evaluate, check, and the tables that are printed."""

import os
import platform
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from skipway import kernels
from skipway.console import Console
from skipway.data.folder import picture_files
from skipway.data.loader import Batches
from skipway.data.pack import Packed, Packing, natural_packing, pack
from skipway.data.source import Source
from skipway.data.sources import open_source
from skipway.data.split import describe, refuse_leaks
from skipway.data.table_set import open_tables
from skipway.data.table_spec import TableSpec
from skipway.engines import quickened
from skipway.errors import InputError, Interrupted, printable
from skipway.models import registry
from skipway.network import Network, prepare, several_views
from skipway.outcome import Evaluation, NumberEvaluation, Prediction, write_predictions
from skipway.probe.summary import summary as summary_of
from skipway.recipe import Recipe
from skipway.runfolder import processor
from skipway.signals import StopFlag
from skipway.spec import Spec
from skipway.stored import load
from skipway.table_use import check_tables, evaluate_table, predict_tables
from skipway.training.metrics import ClassScores, figures, per_class, score
from skipway.training.task import Classification
from skipway.training.trainer import has_bf16
from skipway.utils.devices import available_threads
from skipway.zoo import create_model, input_shape, list_models

__all__ = ["Evaluation", "Prediction", "check", "evaluate", "predict", "summarise", "write_predictions"]

_BATCH = 64
EXTRAS = {"parquet": "pyarrow", "export": "onnxruntime", "openvino": "openvino"}


def predict(
    run: Network | str | os.PathLike[str],
    sources: Any,
    *,
    top: int = 3,
    tta: bool = False,
    engine: str = "auto",
    precision: str = "auto",
    console: Console | None = None,
    stop: StopFlag | None = None,
) -> list[Prediction]:
    """One Prediction per picture or row, in order: `sources` are paths or uint8 arrays, one or several.

    For a network of tables they are table files or DataFrames.

    A folder stands for its pictures at any depth. What cannot be used has a reason in place of classes, and the others
    still get theirs. With `tta` the mean over several views of each picture counts.

    Networks of pictures are computed by `engine`: "torch" (fused: see `skipway.export.fuse`), "openvino", or "auto",
    whichever of those that are installed is done first with so many pictures. `precision` is "bf16"
    where the hardware has it, else "fp32"; "int8" is calibrated on the run's own training pictures. Probabilities
    differ by about 1e-6 in fp32, and by some 1e-3 in bf16.
    """
    console, stop = console or Console(quiet=True), stop or StopFlag()
    if top < 1:
        raise InputError(f"top must be at least 1, not {top}")
    network = run if isinstance(run, Network) else load(run)
    if isinstance(network.spec, TableSpec):
        return predict_tables(network, sources, top, console)
    spec = network._need_spec()
    if isinstance(sources, str | os.PathLike | np.ndarray):
        sources = [sources]
    inputs = [path for source in sources for path in _expanded(source)]
    if not inputs:
        raise InputError("predict needs at least one picture or a folder that holds some")
    network = quickened(network, engine, precision, inputs=len(inputs), run=_folder_of(run), console=console, stop=stop)
    rows: list[Prediction] = []
    bar = console.bar("predicting", len(inputs))
    for begin in range(0, len(inputs), _BATCH):
        if stop.requested:
            raise Interrupted(f"stopped by {stop.name} after {begin:,} of {len(inputs):,} pictures")
        chunk = inputs[begin : begin + _BATCH]
        prepared = [_prepared(item, spec) for item in chunk]
        usable = [p for p in prepared if isinstance(p, np.ndarray)]
        probabilities = iter(network.probabilities(usable, tta) if usable else ())
        for item, outcome in zip(chunk, prepared, strict=True):
            name = "array" if isinstance(item, np.ndarray) else str(item)
            if isinstance(outcome, InputError):
                rows.append(Prediction(name, (), printable(outcome)))
                continue
            shares = next(probabilities)
            order = np.argsort(-shares, kind="stable")[:top]
            rows.append(Prediction(name, tuple((spec.class_names[i], float(shares[i])) for i in order)))
        bar.at(len(rows))
    bar.done()
    return rows


def evaluate(
    run: Network | str | os.PathLike[str],
    data: str | os.PathLike[str],
    *,
    split: str | None = None,
    tta: bool = False,
    engine: str = "auto",
    precision: str = "auto",
    console: Console | None = None,
    stop: StopFlag | None = None,
) -> Evaluation | NumberEvaluation:
    """Accuracy, loss and a row per class of a trained network on `data`; classes are matched by name.

    `split` is "train", "val" or "test"; by default test where there is one, else val, else all pictures.
    With `tta` the mean over several views of each picture counts; `engine` and `precision` are those of `predict`.
    """
    console, stop = console or Console(quiet=True), stop or StopFlag()
    network = run if isinstance(run, Network) else load(run)
    if isinstance(network.spec, TableSpec):
        return evaluate_table(network, os.fspath(data), split)
    spec = network._need_spec()
    source = open_source(os.fspath(data))
    there = [s for s in ("test", "val", "train") if source.count(s)]
    if split is not None and split not in there:
        raise InputError(f"{printable(data)} has no {printable(split)} split; it has {', '.join(reversed(there))}")
    chosen = split or there[0]
    unknown = [n for n in source.class_names if n not in spec.class_names]
    if unknown:
        raise InputError(
            f"{printable(data)} has classes that the network does not know: {', '.join(map(printable, unknown[:5]))}; "
            f"it knows {', '.join(map(printable, spec.class_names[:8]))}"
        )
    index = np.array([spec.class_names.index(n) for n in source.class_names])
    source = replace(source, keys={chosen: source.keys[chosen]}, labels={chosen: index[source.labels[chosen]]},
                     class_names=spec.class_names)  # fmt: skip
    packing = Packing(spec.size, spec.presize, spec.channels, spec.fit, interpolation=spec.interpolation)
    packed = _packed_for(source, packing, console, stop)
    rows = np.arange(len(packed.labels))
    if not len(rows):
        raise InputError(f"no picture of {printable(data)} can be read; `skipway check` names what is wrong with each")
    feed = Batches(packed, rows, 2 * _BATCH, (spec.mean, spec.std))

    def poll() -> None:
        if stop.requested:
            raise Interrupted(f"stopped by {stop.name} while evaluating")

    network = quickened(network, engine, precision, inputs=len(rows), run=_folder_of(run), console=console, stop=stop)
    judging, device = several_views(network) if tta else network, next(network.parameters()).device
    scores: ClassScores = score(judging, feed, Classification(), nullcontext, device, poll)
    return Evaluation(
        chosen, len(rows), scores.accuracy, scores.loss, per_class(scores, spec.class_names), len(packed.skipped),
        figures(scores),
    )  # fmt: skip


def check(
    data: str | os.PathLike[str],
    max_bad: float = 1.0,
    follow_links: bool = False,
    allow_empty: bool = False,
    console: Console | None = None,
    stop: StopFlag | None = None,
    target: str | None = None,
) -> str:
    """What a careful eye sees in `data` before training, as text; every picture is decoded once.

    Of a table `target` is the column to predict.
    """
    if (tables := open_tables(os.fspath(data), target)) is not None:
        return check_tables(tables, max_bad)
    source = open_source(os.fspath(data), follow_links, allow_empty)
    packing = natural_packing(source, None, "squash", Recipe.max_pixels)
    packed = _packed_for(source, packing, console or Console(quiet=True), stop or StopFlag(), max_bad)
    refuse_leaks(packed, allow=True)
    facts = describe(packed)
    lines = [
        f"{printable(packed.name)}: {len(packed.class_names)} classes, "
        + ", ".join(f"{n:,} {split}" for split, n in facts["counts"].items())
        + " pictures",
        f"sizes: {packed.sizes}; {'grey' if packing.channels == 1 else 'colour'}; trained at {packing.size} px",
    ]
    width = max(len(printable(n)) for n in packed.class_names)
    lines += [
        f"  {printable(name):<{width}}  " + "  ".join(f"{split} {n:,}" for split, n in by_split.items())
        for name, by_split in facts["classes"].items()
    ]
    lines += [f"{count:,} {note}" for note, count in facts["notes"].items()]
    if packed.skipped:
        lines.append(f"{len(packed.skipped):,} cannot be read:")
        lines += [f"  {printable(s.key)}: {s.reason}" for s in packed.skipped[:50]]
        lines += [f"  and {len(packed.skipped) - 50:,} more"] if len(packed.skipped) > 50 else []
    lines += [f"mind: {w}" for w in facts["warnings"]]
    if not packed.skipped and not facts["warnings"]:
        lines.append("nothing to mind")
    return "\n".join(lines)


def summarise(model: str, size: int | None = None, num_classes: int | None = None, code: bool = False) -> str:
    """The table of a network's layers, or its code, for a name, a run folder or a file."""
    for name, value in (("size", size), ("num_classes", num_classes)):
        if value is not None and value < 1:
            raise InputError(f"{name} must be at least 1, not {value}")
    if model not in list_models() and Path(model).exists():  # a run that is called as a network: ./resnet18
        network = load(model)
        known = network.spec or network._need_spec()
        shape: tuple[int, ...] = (1, *known.input_shape)
        if isinstance(known, Spec):
            shape = (1, known.channels, size or known.size, size or known.size)
    else:
        network = create_model(model, num_classes)
        size = size or (32 if network.plan.get("stem") == "small" else 224)
        shape = input_shape(network.plan, size)
    return repr(network) if code else str(summary_of(network, shape))


def model_table(pattern: str = "*") -> Iterator[str]:
    """A line for each registered name: its parameters, and what it is made of; given as soon as it is counted."""
    names = list_models(pattern)
    if not names:
        raise InputError(f"no network's name matches {printable(pattern)!r}; `skipway models` lists all names")
    return (_line(name, max(map(len, names))) for name in names)


def _line(name: str, width: int) -> str:
    plan = registry.plan_of(name)
    return f"{name:<{width}}  {registry.parameters(plan):>11,} parameters  {_shape(plan)}"


def _shape(plan: dict[str, Any]) -> str:
    """What tells a network from the others: family or block, layers, stem, whatever else is not usual, classes."""
    usual = registry.FAMILIES[plan["family"]].plan().as_dict()
    told = ("block", "layers", "stem", "num_classes")
    unusual = [f"{k} {_dashed(plan[k])}" for k in usual if k not in told and plan[k] != usual[k]]
    kind = f"{plan.get('block', plan['family'])} {_dashed(plan['layers'])}"
    stem = [f"{plan['stem']} stem"] if "stem" in plan else []
    return ", ".join([kind, *stem, *unusual, f"{plan['num_classes']} classes"])


def _dashed(value: Any) -> str:
    return "-".join(map(str, value)) if isinstance(value, list) else str(value)


def environment_table() -> str:
    """Versions, processor, precision and extras, a line each."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    threads = available_threads()
    rows = {
        "skipway": version("skipway"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": f"{processor()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
        "threads": f"{threads.count}, limited by {threads.reason}",
        "gpu": gpu,
        "precision": "bf16" if has_bf16(device) else "fp32",
        "kernels": kernels.state(),
        **{name: _version(name) for name in ("torch", "accelerate", "pillow", "safetensors", "scikit-learn", "numpy")},
        **{f"{name} extra": _extra(module, name) for name, module in EXTRAS.items()},
    }
    return "\n".join(f"{name:<16}{value}" for name, value in rows.items())


def _packed_for(source: Source, packing: Packing, console: Console, stop: StopFlag, max_bad: float = 1.0) -> Packed:
    return pack(source, packing, max_bad, console, stop, need_every_class=False)


def _folder_of(run: Network | str | os.PathLike[str]) -> Path | None:
    return None if isinstance(run, Network) else Path(run)


def _expanded(source: Any) -> list[Any]:
    if isinstance(source, np.ndarray):
        return [source]
    path = Path(source)
    return (picture_files(path) or [path]) if path.is_dir() else [path]


def _prepared(item: Any, spec: Spec) -> np.ndarray | InputError:
    """The pixels of one input, or why there are none."""
    try:
        if not isinstance(item, np.ndarray) and item.is_dir():
            raise InputError(f"{printable(item)} holds no picture; give pictures, or a folder that has some")
        return prepare(item, spec)
    except InputError as error:
        return error


def _extra(module: str, name: str) -> str:
    return "installed" if find_spec(module) else f"not installed: pip install 'skipway[{name}]'"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
