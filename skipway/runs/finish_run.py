"""End of a run: evaluate the best weights, and write metrics.json, tables, plots and the report."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from skipway.data.image_spec import Spec
from skipway.errors import Interrupted, printable
from skipway.export.export_model import fuse
from skipway.models.load_model import restore
from skipway.models.network import Network
from skipway.models.network_outputs import count_views, with_views
from skipway.models.tree_ensemble import TREES
from skipway.report import html
from skipway.runs.calibrated_weights import calibrate_weights
from skipway.runs.console_summary import verdict
from skipway.runs.datamodule import DataModule
from skipway.runs.ensemble import Ensemble, ensemble_parts
from skipway.runs.environment import describe_environment
from skipway.runs.head_phase import HeadFeatures, head_features, head_scores
from skipway.runs.headline import label_uncertainty, uncertainty_metrics
from skipway.runs.image_datamodule import ImageDataModule
from skipway.runs.run_folder import require_run_folder
from skipway.runs.signal_flow_callback import draw_signal_flow
from skipway.runs.table_datamodule import TableDataModule
from skipway.training.best_weights import refuse_other_weights
from skipway.training.checkpoint import load_weights, save_weights
from skipway.training.label_metrics import best_thresholds
from skipway.training.metrics import compute_metrics, score
from skipway.training.precision import feature_precision
from skipway.training.scores import ClassScores, LabelScores, Scores
from skipway.training.trainer import State, Trainer
from skipway.utils.atomic_files import write_json
from skipway.utils.console import Console
from skipway.utils.run_schema import with_schema
from skipway.utils.stop_signals import StopFlag

__all__ = ["finish_run"]


def finish_run(
    folder: Path, datamodule: DataModule, trainer: Trainer, *, facts: dict[str, Any], console: Console, stop: StopFlag
) -> dict[str, Any]:
    """Evaluate the best weights as `load` returns them, and write the results of the run.

    The evaluation is in fp32, or in the precision of the features if the head was fitted by regression.

    Args:
        folder: run folder.
        datamodule: data of the run.
        trainer: trainer after the last epoch.
        facts: values about the run from its checkpoints.
        console: console for the last lines.
        stop: flag that interrupts the evaluation.

    Returns:
        The values of metrics.json.

    Raises:
        Interrupted: `stop` was set; the trained weights are saved.
        StorageError: the run folder is missing.
    """
    require_run_folder(folder)
    path = folder / "weights" / "best.safetensors"
    ensemble = Ensemble.of(facts["ensemble"]) if facts.get("ensemble") else None
    best, tensors, header = _best_network(path, datamodule, trainer, ensemble)

    def poll() -> None:
        if stop.requested:
            raise Interrupted(
                f"stopped by {stop.name} during the final evaluation, trained weights saved. Complete the report with "
                f"--resume {printable(folder)}."
            )

    _set_views(best, path, tensors, header, datamodule)
    model, features, evaluated_by = _evaluated_model(best, datamodule, trainer, folder=folder, stop=stop)
    scores_of = _evaluate(model, datamodule, trainer, features=features, poll=poll)
    temperature = header.get("temperature")
    if trainer.settings.calibrate and temperature is None:
        val = cast(ClassScores, scores_of["val"])
        temperature = calibrate_weights(best, val, path, tensors=tensors, header=header)
        scores_of = _evaluate(best, datamodule, trainer, features=None, poll=poll)
    if isinstance(scores_of["val"], LabelScores):
        scores_of = _with_thresholds(scores_of, path, tensors, header)
    metrics: dict[str, Any] = {}
    for split, scores in scores_of.items():
        metrics |= {f"{split}_{name}": value for name, value in compute_metrics(scores).items()}
        if isinstance(scores, LabelScores):
            metrics |= label_uncertainty(scores, split)
    split, scores = list(scores_of.items())[-1]
    datamodule.write_evaluation(folder, scores, split)
    metrics |= _describe_training(best, datamodule, trainer, facts)
    metrics["evaluated_by"] = evaluated_by
    metrics |= {"temperature": temperature} if temperature is not None else {}
    metrics |= _describe_ensemble(best, ensemble, datamodule, trainer, poll)
    metrics |= uncertainty_metrics(metrics, trainer.task.primary_metric, metrics["data"])
    write_json(folder / "metrics.json", with_schema(metrics))
    if facts["grown"]:  # env.json describes the network before it grew
        settings = trainer.settings
        values = describe_environment(datamodule.recipe, settings.device, settings.precision, repr(best))
        write_json(folder / "env.json", with_schema(values))
    submission = datamodule.write_submission(folder)
    draw_signal_flow(folder)
    report = html.write(folder)
    require_run_folder(folder)
    console.print(verdict(metrics, trainer.task.primary_metric, datamodule, folder=folder, report=report))
    for line in submission:
        console.print(line)
    return metrics


def _best_network(
    path: Path, datamodule: DataModule, trainer: Trainer, ensemble: Ensemble | None
) -> tuple[Network, dict[str, Tensor], dict[str, Any]]:
    """Return the network of the best weights with the tensors and the header of its file.

    It is joined with boosting, also in the file, if it is the network of an ensemble.
    """
    tensors, header = load_weights(path)
    refuse_other_weights(path, header, asdict(trainer.state))
    best = restore(tensors, header, printable(path)).to(  # type: ignore[call-overload]
        device=trainer.device, memory_format=torch.channels_last
    )
    if ensemble is not None and ensemble.weight and TREES not in best.plan:
        best = cast(TableDataModule, datamodule).with_boosting(best, ensemble)
        tensors, header = best.state_dict(), header | {"plan": best.plan}
        save_weights(path, tensors, header)
    return best, tensors, header


def _evaluated_model(
    best: Network, datamodule: DataModule, trainer: Trainer, *, folder: Path, stop: StopFlag
) -> tuple[nn.Module, HeadFeatures | None, dict[str, Any]]:
    """Return the model that averages over the views, cached features if only its head is computed, and how it does."""
    views, engine, precision = count_views(best.spec), "torch", "fp32"
    model: nn.Module = best
    features: HeadFeatures | None = None
    if views > 1 and _predicts_in_bf16(best, trainer):  # fp32 would take a tenth of the time of the training
        precision = "bf16"
        model = fuse(best, precision)
    elif trainer.settings.head == "regression" and views == 1:
        precision, images = feature_precision(trainer.settings.precision), cast(ImageDataModule, datamodule)
        if trainer.state.best["epoch"] == 1:
            features = head_features(best, images, precision, folder, console=Console(quiet=True), stop=stop)
            engine = features.engine
        else:  # fp32 would take as long as training the last layers
            model = fuse(best, precision)
    if views > 1:
        model = with_views(model, best.require_image_spec())
    return model, features, {"engine": engine, "precision": precision, "views": views}


def _set_views(
    best: Network, path: Path, tensors: dict[str, Tensor], header: dict[str, Any], datamodule: DataModule
) -> None:
    """Store the test-time augmentation of the run in the best weights, if an earlier version saved them without it."""
    if not isinstance(best.spec, Spec):
        return
    spec = cast(ImageDataModule, datamodule).network_spec
    if best.spec.tta != spec.tta:
        best.spec = replace(best.spec, tta=spec.tta)
        header["spec"] = best.spec.as_dict()
        save_weights(path, tensors, header)


def _predicts_in_bf16(network: Network, trainer: Trainer) -> bool:
    """Return True if the run trained in bf16 on a CPU, and `predict` computes its model in bf16 there by default."""
    is_regression = network.spec is not None and network.spec.task == "regression"
    return trainer.device.type == "cpu" and trainer.settings.precision == "bf16" and not is_regression


def _evaluate(
    network: nn.Module,
    datamodule: DataModule,
    trainer: Trainer,
    *,
    features: HeadFeatures | None,
    poll: Callable[[], None],
) -> dict[str, Scores]:
    """Return the scores of the validation and test splits.

    If `features` are passed, only the head of `network` is computed.
    """
    scores_of: dict[str, Scores] = {}
    for split in [split for split in ("val", "test") if datamodule.count(split)]:
        if features is not None:
            ids = cast(ImageDataModule, datamodule).images.splits[split]
            scores_of[split] = head_scores(trainer, features, ids, network.get_submodule("head"))
        else:
            scores_of[split] = score(
                network, datamodule.batches(split), trainer.task, autocast=nullcontext, device=trainer.device, poll=poll
            )
    return scores_of


def _with_thresholds(
    scores_of: Mapping[str, Scores], path: Path, tensors: dict[str, Tensor], header: dict[str, Any]
) -> dict[str, Scores]:
    """Choose the threshold of each label on the validation samples, and store them in the Spec of the best weights."""
    val = cast(LabelScores, scores_of["val"])
    if not val.finite().all():  # the metrics refuse these scores
        return dict(scores_of)
    thresholds = best_thresholds(val.labels, val.probabilities, val.weights)
    save_weights(path, tensors, header | {"spec": header["spec"] | {"thresholds": thresholds.tolist()}})
    return {split: replace(cast(LabelScores, scores), thresholds=thresholds) for split, scores in scores_of.items()}


def _describe_training(
    best: Network, datamodule: DataModule, trainer: Trainer, facts: dict[str, Any]
) -> dict[str, Any]:
    """Return the values of metrics.json about the training, its settings and its data."""
    state = trainer.state
    return {
        "epochs": state.epoch,
        "best_epoch": state.best["epoch"],
        "seconds": round(state.total_seconds, 2),
        "samples_per_second": _mean_speed(state),
        "status": state.status,
        "parameters": sum(p.numel() for p in best.parameters()),
        **({"grown": facts["grown"]} if facts["grown"] else {}),
        "augmentation": datamodule.describe_augmentation(),
        "schedule": [[i / 100, *trainer.rates(i / 100)] for i in range(101)],
        "resolved": {
            "batch_size": facts["batch_size"],
            **asdict(trainer.settings),
            "model": best.plan["name"],
            "compile": facts["compile"],
        },
        "data": datamodule.describe(),
        **datamodule.extra_metrics(),
    }


def _describe_ensemble(
    best: Network, ensemble: Ensemble | None, datamodule: DataModule, trainer: Trainer, poll: Callable[[], None]
) -> dict[str, Any]:
    """Return the weights of network and boosting, and the metrics of each on the rows that evaluate both."""
    if ensemble is None:
        return {}
    values: dict[str, Any] = {"with": datamodule.recipe.ensemble_with, **ensemble.as_dict()}
    metric = trainer.task.primary_metric
    for name, part in ensemble_parts(best).items():
        scores_of = _evaluate(part, datamodule, trainer, features=None, poll=poll)
        values[name] = {f"{split}_{metric}": scores.primary_metric for split, scores in scores_of.items()}
        values[name] |= {f"{split}_loss": scores.loss for split, scores in scores_of.items()}
    return {"ensemble": values}


def _mean_speed(state: State) -> float:
    """Return the mean number of samples per second over all epochs."""
    samples = sum(row["samples_per_second"] * row["seconds"] for row in state.history)
    return round(samples / max(sum(row["seconds"] for row in state.history), 1e-9), 1)
