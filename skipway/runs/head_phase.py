"""First epoch of a pretrained network: its head is fitted to features that are computed once.

The layers before the head are frozen, so fitting the head is a convex problem, which a solver handles instead of
gradient descent: see `skipway.training.linear_head` and `ridge_head`. Fine-tuning may follow. Its weights
replace those of this epoch only if they are better on the validation images.

Shapes: N images, D features.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from skipway.data.images.decoded_cache import pixels_fingerprint
from skipway.data.sample_weights import loss_weights
from skipway.models.network import Network
from skipway.runs.feature_cache import FeatureCache
from skipway.runs.feature_size import seconds_per_image
from skipway.runs.image_datamodule import ImageDataModule
from skipway.training.linear_head import fit_linear_head
from skipway.training.metrics import Scores
from skipway.training.precision import feature_precision
from skipway.training.ridge_head import fit_ridge_head
from skipway.training.trainer import Settings, Trainer
from skipway.utils.cache_folder import cache_folder
from skipway.utils.console import Console
from skipway.utils.primary_metric import PRIMARY_METRIC_OF, PRIMARY_METRICS
from skipway.utils.stop_signals import StopFlag

__all__ = ["HEAD_FITS", "HeadFeatures", "HeadFit", "feature_cache", "fit_head", "head_features", "head_scores"]


HEAD_FITS = {  # method by task
    "classification": "logistic regression",
    "multilabel": "logistic regression per label",
    "regression": "ridge regression",
}
_TRAINING_COST = 12  # approximate ratio of a training step to the features of the same images
_MEASURED = 600  # images that are processed to measure the pace of training


@dataclass(frozen=True)
class HeadFeatures:
    """Inputs of a network's head for every image of a run.

    Attributes:
        features: (N, D) in the order of the images.
        targets: (N,) class indices, (N, K) labels or (N, T) standardized numbers.
        engine: inference engine that computed the features.
        weights: (N,) sample weights, or None for equal weights.
    """

    features: Tensor
    targets: Tensor
    engine: str
    weights: Tensor | None = None

    def of(self, ids: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return the features (N, D) and targets of the images `ids`."""
        return self.features[ids], self.targets[ids]

    def weights_of(self, ids: np.ndarray) -> Tensor | None:
        """Return the weights (N,) of the images `ids`, or None for equal weights."""
        return None if self.weights is None else self.weights[ids]


@dataclass(frozen=True)
class HeadFit:
    """Fitted head: the features that it was fitted to, and the seconds that features and fit took."""

    features: HeadFeatures
    seconds: float

    def leaves_no_time(self, network: Network, precision: str, seconds: float) -> bool:
        """Return True if one epoch of fine-tuning does not fit into `seconds`, by the pace of the features.

        Training steps would be more accurate, but measuring them takes longer than the rest of a small run.
        """
        images = len(self.features.targets) + _MEASURED
        return seconds < _TRAINING_COST * seconds_per_image(network, precision) * images

    def record(self, trainer: Trainer, datamodule: ImageDataModule) -> Scores:
        """Write the training metrics of the head into the trainer's state, and return its validation scores."""
        train_ids = datamodule.images.splits["train"]
        x, y = self.features.of(train_ids)
        weights, state, task = self.features.weights_of(train_ids), trainer.state, trainer.task
        with torch.inference_mode():
            outputs = head_outputs(trainer, x).cpu()
            state.loss = float(task.loss(outputs, y, weights)) * len(y)
            state.metric_sum = task.metric_sum(outputs, y, weights)
        state.seen, state.seconds = len(y), self.seconds
        return head_scores(trainer, self.features, datamodule.images.splits["val"])


def feature_cache(
    network: Network,
    datamodule: ImageDataModule,
    precision: str,
    folder: Path,
    *,
    console: Console,
    stop: StopFlag,
    last: str | None = None,
) -> FeatureCache:
    """Return the cache for the outputs of the layers up to `last`, by default all layers before the head.

    Args:
        network: pretrained network.
        datamodule: prepared images.
        precision: precision of the run.
        folder: run folder; the cache is next to it.
        console: console for progress.
        stop: flag that interrupts the computation.
        last: name of the last layer, or None.
    """
    images = datamodule.images
    fingerprint = pixels_fingerprint(images)  # runs with different splits share features
    where = cache_folder("features")
    precision = feature_precision(precision)
    return FeatureCache(network, precision, where, fingerprint, len(images.keys), console, stop, last)


def head_features(
    network: Network,
    datamodule: ImageDataModule,
    precision: str,
    folder: Path,
    *,
    console: Console,
    stop: StopFlag,
) -> HeadFeatures:
    """Return the features of all images of a run without augmentation, cached if possible.

    Args:
        network: network whose layers before the head compute the features.
        datamodule: data after `prepare` and `setup`.
        precision: "bf16" or "fp32".
        folder: run folder.
        console: console for progress.
        stop: flag that interrupts the computation.
    """
    images = datamodule.images
    cache = feature_cache(network, datamodule, precision, folder, console=console, stop=stop)
    features = cache.features(datamodule.batches("val"), np.arange(len(images.keys)))
    targets = datamodule.network_spec.standardized(images.targets)
    weights = loss_weights(images.weights, images.splits["train"])
    of_samples = None if weights is None else torch.from_numpy(weights)
    return HeadFeatures(features, torch.from_numpy(targets), cache.engine, of_samples)


def fit_head(
    network: Network,
    datamodule: ImageDataModule,
    settings: Settings,
    folder: Path,
    *,
    console: Console,
    stop: StopFlag,
) -> HeadFit:
    """Fit the head of `network` to the training images by regression, in place; the other layers are unchanged.

    Args:
        network: pretrained network with a linear head.
        datamodule: data after `prepare` and `setup`.
        settings: training settings.
        folder: run folder.
        console: console for progress.
        stop: flag that interrupts the computation.
    """
    begin = time.monotonic()
    network.to(settings.device)
    features = head_features(network, datamodule, settings.precision, folder, console=console, stop=stop)
    train_ids = datamodule.images.splits["train"]
    (x, y), of_samples = features.of(train_ids), features.weights_of(train_ids)
    head = cast(nn.Linear, network.get_submodule("head"))
    targets = datamodule.target_counts()
    if targets.task == "regression":
        fitted = fit_ridge_head(x, y, sample_weights=of_samples)
    else:
        weights = targets.loss_weights() if datamodule.recipe.balance != "none" else None
        fitted = fit_linear_head(
            x,
            y,
            head.out_features,
            class_weights=weights,
            seed=settings.seed,
            groups=_group_numbers(datamodule.images.groups, train_ids),
            sample_weights=of_samples,
        )
    with torch.no_grad():
        head.weight.copy_(fitted.weight)
        if head.bias is not None:
            head.bias.copy_(fitted.bias)
    metric = PRIMARY_METRICS[PRIMARY_METRIC_OF[targets.task]]
    console.print(
        f"  head: {HEAD_FITS[targets.task]}, L2 penalty {fitted.penalty:.3g} by cross-validation on the training "
        f"images ({metric.title} {metric.text(fitted.score, 1)})"
    )
    return HeadFit(features, time.monotonic() - begin)


def _group_numbers(groups: list[str] | None, ids: np.ndarray) -> Tensor | None:
    """Return (N,) numbers of the groups of the images `ids`; images without a group have their own."""
    if groups is None:
        return None
    names = [groups[i] or f"\0{i}" for i in ids]
    return torch.from_numpy(np.unique(names, return_inverse=True)[1])


def head_outputs(trainer: Trainer, x: Tensor, head: nn.Module | None = None) -> Tensor:
    """Return the outputs (N, classes) of a head in the training precision.

    Args:
        trainer: trainer with device and precision.
        x: features (N, D).
        head: head to compute; default: the trainer's.
    """
    head = head or trainer.eval_model.get_submodule("head")
    with torch.no_grad(), trainer.autocast():
        outputs: Tensor = head(x.to(trainer.device)).float()
    return outputs


def head_scores(trainer: Trainer, features: HeadFeatures, ids: np.ndarray, head: nn.Module | None = None) -> Scores:
    """Evaluate a head on the images `ids`.

    Args:
        trainer: trainer with task, device and precision.
        features: features of all images.
        ids: image indices.
        head: head to evaluate; default: the trainer's.
    """
    x, y = features.of(ids)
    with torch.inference_mode():
        scores = trainer.task.scores(head_outputs(trainer, x, head).cpu(), y, ids)
    weights = features.weights_of(ids)
    return scores if weights is None else replace(scores, weights=weights.double().numpy())
