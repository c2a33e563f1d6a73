"""Evaluation of a model on a set of samples, and the metrics computed from its scores.

Shapes: N samples, K classes or labels, T targets.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import chain
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipway.data.output_spec import TaskName
from skipway.distributed import collectives
from skipway.distributed.fsdp import is_sharded
from skipway.errors import NotFiniteError, StorageError, is_out_of_memory
from skipway.training.label_metrics import auroc
from skipway.training.precision import without_tf32
from skipway.training.release_memory import release_memory
from skipway.training.scores import ClassScores, LabelScores, RegressionScores, Scores

__all__ = [
    "Averaged",
    "Batches",
    "ClassScores",
    "LabelScores",
    "RegressionScores",
    "Scores",
    "compute_metrics",
    "per_class",
    "per_label",
    "per_target",
    "score",
    "sigmoid",
    "softmax",
]

_BINS = 15  # probability bins of the calibration error


class Batches(Protocol):
    """Protocol of a source of batches (x (B, C, S, S), targets y, ids (B,))."""

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """(begin, end) of each batch of an epoch, in samples."""

    @property
    def steps(self) -> int:
        """Number of batches in an epoch."""

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[tuple[Tensor, Tensor, np.ndarray]]:
        """Yield the batches of an epoch, starting with batch `start`."""

    def weights(self, ids: np.ndarray, epoch: int = 0) -> Tensor | None:
        """Return the weights (B,) of the samples of a batch, 1 on average over the training set; None: all are 1."""


class Scorer(Protocol):
    """Protocol of the part of a task that `score` uses."""

    def scores(self, outputs: Tensor, y: Tensor, ids: np.ndarray) -> Any:
        """Compute the scores of outputs (N, K) for targets."""


def score(
    network: nn.Module,
    batches: Batches,
    task: Scorer,
    *,
    autocast: Callable[[], AbstractContextManager[Any]],
    device: torch.device,
    poll: Callable[[], None] = lambda: None,
    report: Callable[[str], None] = lambda line: None,
) -> Any:
    """Evaluate a model on every sample of `batches`. A batch that does not fit into memory is split.

    Args:
        network: set to evaluation mode, and back to its previous mode at the end.
        batches: with several processes, each process iterates over its part.
        task: computes the scores from the outputs.
        autocast: returns the context of a forward pass.
        device: device of the inputs.
        poll: called before each batch, to raise an error if a stop was requested.
        report: prints a line if batches are split.

    Returns:
        The scores of all samples, in every process, with their weights.

    Raises:
        StorageError: a single sample does not fit into memory.
    """
    training = network.training
    network.eval()
    parts: list[tuple[Tensor, Tensor, np.ndarray, np.ndarray | None]] = []
    num_pieces = 1

    def compute(piece: Tensor) -> Tensor:
        with autocast():
            return network(piece.to(device)).float().cpu()

    try:
        # Not inference_mode: FSDP weights gathered in it could not be used in training.
        with without_tf32(), torch.no_grad():
            for x, y, ids in batches.epoch():
                poll()
                weights = batches.weights(ids)
                of_samples = None if weights is None else weights.cpu().double().numpy()
                before = num_pieces
                outputs, num_pieces = _in_pieces(compute, x, num_pieces, device, may_split=not _has_shards(network))
                if num_pieces > before:
                    report(f"  ran out of memory with {len(ids)} samples in evaluation: split into {num_pieces} parts")
                parts.append((outputs, y.cpu(), ids, of_samples))
    finally:
        network.train(training)
    all_parts = [part for part in chain(*collectives.all_gather(parts)) if len(part[2])]
    all_outputs, targets, all_ids, all_weights = zip(*all_parts, strict=True)
    with torch.inference_mode():
        scores = task.scores(torch.cat(all_outputs), torch.cat(targets), np.concatenate(all_ids))
    return scores if all_weights[0] is None else replace(scores, weights=np.concatenate(all_weights))


def _in_pieces(
    compute: Callable[[Tensor], Tensor], x: Tensor, num_pieces: int, device: torch.device, *, may_split: bool
) -> tuple[Tensor, int]:
    """Compute the outputs of a batch in pieces, and in twice as many as long as it runs out of memory.

    Returns:
        The outputs, and the number of pieces.
    """
    while True:
        try:
            pieces = x.tensor_split(min(num_pieces, len(x))) if num_pieces > 1 else (x,)
            outputs = [compute(piece) for piece in pieces]
            return (torch.cat(outputs) if len(outputs) > 1 else outputs[0]), num_pieces
        except (MemoryError, RuntimeError) as error:
            if not may_split or not is_out_of_memory(error):
                raise
        # Outside of the handler, so that the traceback no longer keeps tensors alive.
        if num_pieces >= len(x):
            raise StorageError(
                "ran out of memory in evaluation: expected memory for 1 sample, got none. Use a smaller --img-size or "
                "--model, or a machine with more memory. Saved checkpoints are intact."
            )
        num_pieces *= 2
        release_memory(device)


def _has_shards(network: nn.Module) -> bool:
    """Return True if the processes compute each batch together."""
    return any(is_sharded(p) for p in network.parameters())


def softmax(outputs: Tensor) -> Tensor:
    """Compute probabilities (N, K) from logits (N, K); NaN for samples with a logit that is not finite.

    >>> softmax(torch.tensor([[0.0, 0.0], [math.inf, 0.0]]))
    tensor([[0.5000, 0.5000],
            [   nan,    nan]])
    """
    return outputs.softmax(1).masked_fill(~outputs.isfinite().all(1, keepdim=True), math.nan)


def sigmoid(outputs: Tensor) -> Tensor:
    """Compute label probabilities (N, K) from logits (N, K); NaN for samples with a logit that is not finite."""
    return outputs.sigmoid().masked_fill(~outputs.isfinite().all(1, keepdim=True), math.nan)


class Averaged(nn.Module):
    """Test-time augmentation: outputs (B, K) of the mean prediction over several views of each input.

    The outputs are the logarithm of mean class probabilities, the logit of mean label probabilities, or mean numbers.

    Args:
        network: returns outputs (B, K).
        views: returns the views of a batch, each of its shape.
        task: meaning of the outputs.
    """

    def __init__(self, network: nn.Module, views: Callable[[Tensor], list[Tensor]], task: TaskName = "classification"):
        super().__init__()
        self.network, self.views, self.task = network, views, task

    def forward(self, x: Tensor) -> Tensor:
        """Average the predictions: (B, C, S, S) -> (B, K)."""
        outputs = torch.stack([self.network(view).float() for view in self.views(x)])
        if self.task == "regression":
            return outputs.mean(0)
        if self.task == "multilabel":
            present, absent = (F.logsigmoid(sign * outputs).logsumexp(0) for sign in (1, -1))
            return present - absent
        return outputs.log_softmax(2).logsumexp(0) - math.log(len(outputs))


def compute_metrics(scores: Scores) -> dict[str, float]:
    """Compute the metrics of a classification, of labels or of a regression.

    Args:
        scores: scores of a set.

    Returns:
        Metrics by name. Classification: accuracy, loss, balanced_accuracy (mean recall), macro_f1, top5_accuracy (for
        more than 5 classes), auroc and ece. auroc is one-vs-rest (Hanley and McNeil 1982). ece is the expected
        calibration error over 15 bins (Guo et al. 2017, arXiv:1706.04599). Recall, F1 and auroc are averaged over the
        classes in the set, and auroc is omitted for a single class. Labels: map (mean average precision), loss,
        macro_f1 and micro_f1 at the thresholds, subset_accuracy (share of samples with exactly the true labels) and
        auroc; averages are over the labels that occur in the set. Regression: r2, mae and rmse in the original unit,
        averaged over the targets, and loss. All metrics are weighted by the weights of the samples.

    Raises:
        NotFiniteError: the outputs for a sample are NaN or infinite.
    """
    if bad := int((~scores.finite()).sum()):
        raise NotFiniteError(
            f"cannot compute metrics: expected finite outputs, got NaN or infinity for {bad:,} of {len(scores.ids):,} "
            "samples. Use precision fp32, or train the model again with a lower --lr."
        )
    if isinstance(scores, RegressionScores):
        return {"r2": scores.r2, "mae": scores.mae, "rmse": scores.rmse, "loss": scores.loss}
    if isinstance(scores, LabelScores):
        return _label_metrics(scores)
    assert isinstance(scores, ClassScores)
    labels, shares, predicted, weights = scores.labels, scores.probabilities, scores.predicted, scores.weights
    _, recall, f1, count = _precision_recall_f1(scores.confusion(weighted=True))
    present = np.flatnonzero(count > 0)
    metrics = {"accuracy": scores.accuracy, "loss": scores.loss, "balanced_accuracy": float(recall[present].mean())}
    metrics["macro_f1"] = float(f1[present].mean())
    if shares.shape[1] > 5:
        top = np.argpartition(-shares, 4, axis=1)[:, :5]
        metrics["top5_accuracy"] = float(scores.mean((top == labels[:, None]).any(axis=1)))
    if len(present) > 1:
        metrics["auroc"] = float(np.mean([auroc(labels == c, shares[:, c], weights) for c in present]))
    likely = shares.max(axis=1)
    bins = np.minimum((likely * _BINS).astype(int), _BINS - 1)
    gaps, total = (predicted == labels) - likely, float(len(labels))
    if weights is not None:
        gaps, total = gaps * weights, weights.sum()
    metrics["ece"] = float(np.abs(np.bincount(bins, weights=gaps, minlength=_BINS)).sum() / total)
    return metrics


def per_class(scores: ClassScores, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return class, count, precision, recall and f1 of each class. Undefined values are 0.

    Args:
        scores: scores of a classification.
        names: (K,) class names.
    """
    precision, recall, f1, _ = _precision_recall_f1(scores.confusion(weighted=True))
    count = np.bincount(scores.labels, minlength=len(names))
    return [
        {
            "class": name,
            "count": int(count[i]),
            "precision": float(precision[i]),
            "recall": float(recall[i]),
            "f1": float(f1[i]),
        }
        for i, name in enumerate(names)
    ]


def _label_metrics(scores: LabelScores) -> dict[str, float]:
    rows = per_label(scores, tuple(map(str, range(scores.labels.shape[1]))))
    present = [row for row in rows if row["count"]]
    hits = scores.sum(scores.labels & scores.predicted).sum()
    answers = (scores.sum(scores.labels) + scores.sum(scores.predicted)).sum()
    metrics = {"map": scores.map, "loss": scores.loss}
    metrics["macro_f1"] = float(np.mean([row["f1"] for row in present])) if present else 0.0
    metrics["micro_f1"] = float(2 * hits / (answers or 1))
    metrics["subset_accuracy"] = float(scores.mean((scores.labels == scores.predicted).all(axis=1)))
    areas = [row["auroc"] for row in rows if row["auroc"] is not None]
    return metrics | ({"auroc": float(np.mean(areas))} if areas else {})


def per_label(scores: LabelScores, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return class (the label), count, precision, recall, f1, average_precision, auroc and threshold of each label.

    An undefined precision, recall or f1 is 0. The average precision of a label without positive samples is None, and
    so is an auroc without positive or without negative samples.

    Args:
        scores: scores of a multi-label model.
        names: (K,) label names.
    """
    predicted, labels = scores.predicted, scores.labels
    hits, actual, answers = (scores.sum(values) for values in (labels & predicted, labels, predicted))
    precisions = scores.average_precisions
    areas = [auroc(labels[:, k], scores.probabilities[:, k], scores.weights) for k in range(len(names))]
    count = labels.sum(axis=0)
    return [
        {
            "class": name,
            "count": int(count[k]),
            "precision": float(hits[k] / (answers[k] or 1)),
            "recall": float(hits[k] / (actual[k] or 1)),
            "f1": float(2 * hits[k] / (actual[k] + answers[k] or 1)),
            "average_precision": None if math.isnan(precisions[k]) else float(precisions[k]),
            "auroc": None if math.isnan(areas[k]) else areas[k],
            "threshold": float(scores.thresholds[k]),
        }
        for k, name in enumerate(names)
    ]


def per_target(scores: RegressionScores, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return target, r2, mae, rmse, mean_error (predicted minus true), mean and std of the true values of each target.

    Args:
        scores: scores of a regression.
        names: (T,) names of the targets.
    """
    columns = {
        "r2": scores.r2_of_targets,
        "mae": scores.mae_of_targets,
        "rmse": scores.rmse_of_targets,
        "mean_error": scores.mean(scores.predicted - scores.targets),
        "mean": scores.mean(scores.targets),
        "std": np.sqrt(scores.mean((scores.targets - scores.mean(scores.targets)) ** 2)),
    }
    return [
        {"target": name, **{key: float(values[t]) for key, values in columns.items()}} for t, name in enumerate(names)
    ]


# scikit-learn returns the same values, but importing it takes 1 second.


def _precision_recall_f1(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return precision, recall, F1 and count of each class of a confusion matrix with true rows; 0 / 0 is 0."""
    hits, count, answers = confusion.diagonal().astype(float), confusion.sum(axis=1), confusion.sum(axis=0)
    precision, recall, f1 = (
        part / np.where(whole > 0, whole, 1)
        for part, whole in ((hits, answers), (hits, count), (2 * hits, count + answers))
    )
    return precision, recall, f1, count
