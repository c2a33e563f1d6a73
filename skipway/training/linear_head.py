"""Linear probe: L2-regularized logistic regression on fixed features, fitted with L-BFGS.

    sum over samples of weight * cross-entropy + penalty / 2 * (squared norm of the weights of standardized features)

The cross-entropy is that of the classes (multinomial), or the sum of the binary ones of several labels. Numbers are
fitted in `skipway.training.ridge_head`.

Cross-validation chooses the penalty with the smallest loss. The loss is a sum over samples, so that a penalty chosen on
a subset suits the full set.

Shapes: N samples, D features, K classes or labels.
Sources: L-BFGS, Liu and Nocedal 1989; bound on the curvature of the multinomial likelihood, by which the problem is
preconditioned, Boehning 1992.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from skipway.data.strata import strata_of
from skipway.data.stratified_split import fold_numbers
from skipway.errors import NotFiniteError
from skipway.training.label_metrics import average_precisions, mean_average_precision

__all__ = ["PENALTIES", "Axes", "LinearHead", "fit_linear_head", "held_out_folds", "principal_axes"]

PENALTIES = tuple(10.0**exponent for exponent in (4, 3.5, 3, 2.5, 2, 1.5, 1, 0.5, 0, -0.5, -1, -2))
_FOLDS = 5
_MAX_CHOOSING = 4_000  # samples used to choose the penalty
_CHOOSING_STEPS, _FINAL_STEPS = 30, 200  # L-BFGS stops earlier if the gradient vanishes
_TOLERANCE = 1e-5  # of the gradient of the mean loss
_WORSE = 2  # the search stops after this many consecutive penalties without a smaller held-out loss


@dataclass(frozen=True)
class LinearHead:
    """Hold a fitted linear layer for features that are not standardized.

    Attributes:
        weight: (K, D).
        bias: (K,).
        penalty: L2 penalty.
        score: accuracy, mean average precision or R2 of held-out samples; NaN if the penalty was passed by the caller.
    """

    weight: Tensor
    bias: Tensor
    penalty: float
    score: float


def fit_linear_head(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    class_weights: Sequence[float] | None = None,
    penalty: float | None = None,
    seed: int = 0,
    groups: Tensor | None = None,
    sample_weights: Tensor | None = None,
) -> LinearHead:
    """Fit a linear classifier to features. The result is deterministic.

    Args:
        features: (N, D) float32, or float64 for a solution of higher precision.
        labels: (N,) class indices, or (N, K) labels of 0 and 1, of which a sample can have several.
        num_classes: number of logits; classes without samples are allowed.
        class_weights: weight of the samples of each class, or of those that have each label, default 1.
        penalty: L2 penalty; None chooses it from PENALTIES by cross-validation.
        seed: seed of the folds.
        groups: (N,) group index of each sample, default a group per sample. Samples of a group, such as views of an
            image, are held out together.
        sample_weights: (N,) weights of the samples, default 1.

    Returns:
        The weight and bias of the layer, the penalty and the held-out score.

    Raises:
        NotFiniteError: a feature is NaN or infinite.
    """
    axes = principal_axes(features, sample_weights)
    weights = torch.ones(len(labels), dtype=features.dtype) if sample_weights is None else sample_weights
    problem: _Problem
    if labels.dim() == 2:
        problem = _LabelProblem(axes.features, labels.to(features.dtype), axes.curvature, num_classes, class_weights)
        strata = torch.from_numpy(strata_of("multilabel", labels.numpy(), np.arange(len(labels))))
    else:
        problem, strata = _Problem(axes.features, labels, axes.curvature, num_classes), labels
        if class_weights is not None:
            weights = weights * torch.tensor(class_weights, dtype=features.dtype)[labels]
    score, start = math.nan, None
    if penalty is None:
        penalty, score, start = _choose_penalty(problem, weights, strata, seed, groups)
    solution = problem.solve(weights[:, None], penalty, start, _FINAL_STEPS)[:, 0]
    weight, bias = axes.layer(solution)
    if labels.dim() == 1:  # a shift of all logits changes no probability
        bias = bias - bias.mean()
    return LinearHead(weight, bias, penalty, score)


def held_out_folds(labels: Tensor, seed: int, groups: Tensor | None = None, folds: int = _FOLDS) -> Tensor:
    """Assign samples to folds, stratified by class. Samples of a group share a fold.

    Args:
        labels: (N,) class indices.
        seed: seed of the assignment.
        groups: (N,) group index of each sample, default a group per sample.
        folds: number of folds.

    Returns:
        (N,) fold index of each sample.
    """
    names = None if groups is None else list(map(str, groups.tolist()))
    contents = list(map(str, range(len(labels))))
    return torch.from_numpy(fold_numbers(labels.numpy(), contents, folds, seed, names) - 1)


@dataclass(frozen=True)
class _Problem:
    """Hold the features in their principal axes, and the labels, for the cross-entropy of classes.

    F classifiers are fitted at once, each with different sample weights: one per fold, or F = 1 for all samples.
    Solutions are (D + 1, F, K) with the bias last.
    """

    features: Tensor
    labels: Tensor
    curvature: Tensor  # (D,) mean square of the features along each axis
    num_classes: int
    curvature_bound: ClassVar[float] = 0.5  # of the second derivative of the loss in the logits

    def part(self, rows: Tensor) -> Self:
        """Return the problem for some of the samples."""
        return replace(self, features=self.features[rows], labels=self.labels[rows])

    def targets(self, share: Tensor) -> Tensor:
        """Return the targets, times the weights `share` (N, F, 1), as the closure of `solve` needs them."""
        return F.one_hot(self.labels, self.num_classes).to(share.dtype)[:, None] * share

    def loss_and_slope(self, logits: Tensor, target: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of the losses and the gradient (N, F, K) in the logits."""
        log_shares = logits.log_softmax(2)
        loss = -(log_shares * target).sum()
        return loss, log_shares.exp_() * share - target

    def solve(self, weights: Tensor, penalty: float, start: Tensor | None, steps: int) -> Tensor:
        """Minimize the loss for the sample weights (N, F).

        Rescaling each axis by its curvature improves the conditioning, so that a few dozen steps are enough.
        """
        count, dim = self.features.shape
        shape = (dim + 1, weights.shape[1], self.num_classes)
        rescale = (self.curvature_bound * self.curvature + penalty / count).rsqrt()[:, None]
        rescaled, exact = self.features * rescale.T, self.features.dtype == torch.float64
        if start is None:
            start = torch.zeros(shape, dtype=rescaled.dtype)
        start = start.flatten(1)
        variables = torch.cat([start[:-1] / rescale, start[-1:]]).requires_grad_()
        share = (weights / count)[:, :, None]
        decay = penalty / count * rescale.square()
        target = self.targets(share)
        optimizer = torch.optim.LBFGS(
            [variables],
            max_iter=steps,
            history_size=20,
            tolerance_grad=1e-10 if exact else _TOLERANCE,
            tolerance_change=1e-15 if exact else 1e-9,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            with torch.no_grad():
                weight, bias = variables[:-1], variables[-1]
                logits = torch.addmm(bias, rescaled, weight).unflatten(1, shape[1:])
                loss, slope = self.loss_and_slope(logits, target, share)
                loss += 0.5 * (decay * weight.square()).sum()
                slope = slope.flatten(1)
                variables.grad = torch.cat([rescaled.T @ slope + decay * weight, slope.sum(0, keepdim=True)])
            return loss

        optimizer.step(closure)
        solved = variables.detach()
        return torch.cat([solved[:-1] * rescale, solved[-1:]]).unflatten(1, shape[1:])

    def evaluate(self, solution: Tensor, weights: Tensor) -> tuple[float, float]:
        """Compute the weighted sum of the losses and the accuracy for sample weights (N, F)."""
        log_shares = self.logits(solution).log_softmax(2)
        losses = -log_shares.gather(2, self.labels[:, None, None].expand(*weights.shape, 1))[..., 0]
        correct = log_shares.argmax(2) == self.labels[:, None]
        return float((losses * weights).sum()), float((correct * weights).sum()) / float(weights.sum())

    def logits(self, solution: Tensor) -> Tensor:
        """Return the logits (N, F, K) of a solution."""
        logits = torch.addmm(solution[-1].flatten(), self.features, solution[:-1].flatten(1))
        return logits.unflatten(1, solution.shape[1:])


@dataclass(frozen=True)
class _LabelProblem(_Problem):
    """Problem of labels (N, K) of 0 and 1, for the sum of their binary cross-entropies."""

    positive_weights: Sequence[float] | None = None
    curvature_bound: ClassVar[float] = 0.25

    def _label_weights(self) -> Tensor:
        """Return the weights (N, 1, K) of the losses of single labels."""
        if self.positive_weights is None:
            return torch.ones_like(self.labels)[:, None]
        return torch.where(self.labels > 0.5, self.labels.new_tensor(self.positive_weights), 1.0)[:, None]

    def targets(self, share: Tensor) -> Tensor:
        """Return the weights (N, F, K) of the losses."""
        return self._label_weights() * share

    def loss_and_slope(self, logits: Tensor, target: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of the losses and the gradient (N, F, K) in the logits; `target` holds the weights."""
        labels = self.labels[:, None]
        loss = ((F.softplus(logits) - logits * labels) * target).sum()
        return loss, (logits.sigmoid() - labels) * target

    def evaluate(self, solution: Tensor, weights: Tensor) -> tuple[float, float]:
        """Compute the weighted sum of the losses and the mean average precision for sample weights (N, F)."""
        logits = self.logits(solution)
        losses = (F.softplus(logits) - logits * self.labels[:, None]) * self._label_weights()
        of_folds = logits.gather(1, weights.argmax(1)[:, None, None].expand(-1, 1, logits.shape[2]))[:, 0]
        precisions = average_precisions((self.labels > 0.5).numpy(), of_folds.numpy())
        return float((losses.sum(2) * weights).sum()), float(mean_average_precision(precisions))


def _choose_penalty(
    problem: _Problem, sample_weights: Tensor, strata: Tensor, seed: int, groups: Tensor | None
) -> tuple[float, float, Tensor | None]:
    """Return the penalty with the smallest held-out loss, the held-out score, and the mean of the solutions.

    The search starts with the strongest penalty. Each solution initializes the next one.
    """
    chosen = _subset(strata, seed, groups)
    fold = held_out_folds(strata[chosen], seed, None if groups is None else groups[chosen])
    part = problem.part(chosen)
    held_out = F.one_hot(fold).to(sample_weights.dtype)
    fitted_weights = (1 - held_out) * sample_weights[chosen, None]
    held_out_weights = held_out * sample_weights[chosen, None]
    best, worse, solution, mean_solution = (math.inf, PENALTIES[0], 0.0), 0, None, None
    for penalty in PENALTIES:
        solution = part.solve(fitted_weights, penalty, solution, _CHOOSING_STEPS)
        loss, score = part.evaluate(solution, held_out_weights)
        worse += 1
        if loss < best[0]:
            best, worse, mean_solution = (loss, penalty, score), 0, solution.mean(1, keepdim=True)
        if worse == _WORSE:
            break
    return best[1], best[2], mean_solution


def _subset(labels: Tensor, seed: int, groups: Tensor | None) -> Tensor:
    """Return the indices of a stratified subset of whole groups, on which the penalty is chosen."""
    if len(labels) <= _MAX_CHOOSING:
        return torch.arange(len(labels))
    parts = -(-len(labels) // _MAX_CHOOSING)
    return (held_out_folds(labels, seed, groups, folds=parts) == 0).nonzero()[:, 0]


@dataclass(frozen=True)
class Axes:
    """Standardized features in their principal axes.

    Attributes:
        features: (N, R).
        basis: (D, R) orthonormal axes.
        curvature: (R,) mean square of the features along each axis.
        mean, scale: (D,) statistics of the features.
    """

    features: Tensor
    basis: Tensor
    curvature: Tensor
    mean: Tensor
    scale: Tensor

    def layer(self, solution: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weight (K, D) and the bias (K,) for features, of a solution (R + 1, K) with the bias last."""
        weight = (self.basis @ solution[:-1]).T / self.scale
        return weight, solution[-1] - weight @ self.mean


def principal_axes(features: Tensor, weights: Tensor | None = None) -> Axes:
    """Standardize features (N, D) with sample weights (N,), and rotate them to their principal axes.

    Raises:
        NotFiniteError: a feature is NaN or infinite.
    """
    if not features.isfinite().all():
        raise NotFiniteError(
            "cannot fit a linear head: expected finite features, got NaN or infinity. Check the pretrained weights, or "
            "train in --precision fp32."
        )
    mean, spread = features.mean(0), features.std(0, correction=0)
    if weights is not None:
        shares = (weights / weights.sum()).to(features.dtype)[:, None]
        mean = (features * shares).sum(0)
        spread = ((features - mean).square() * shares).sum(0).sqrt()
    scale = _positive(spread)
    standardized = (features - mean) / scale
    basis, curvature = _principal_axes(standardized)
    return Axes(standardized @ basis, basis, curvature, mean, scale)


def _principal_axes(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return an orthonormal basis (D, R) of the span of the features, and their mean square along each axis.

    Directions outside of the span can be dropped, because the penalty keeps the weights there at zero.
    """
    count, dim = features.shape
    if count < dim:
        gram = (features @ features.T).double()
        values, vectors = torch.linalg.eigh(gram)
        used = values > values[-1].clamp(min=1e-30) * 1e-10
        basis = features.T.double() @ vectors[:, used] * values[used].rsqrt()
    else:
        values, basis = torch.linalg.eigh((features.T @ features).double())
        used = values > values[-1].clamp(min=1e-30) * 1e-10
        basis = basis[:, used]
    return basis.to(features.dtype), (values[used] / count).to(features.dtype)


def _positive(scale: Tensor) -> Tensor:
    """Return the scale of each feature, and 1 for constant features."""
    return torch.where(scale > 1e-6 * scale.max().clamp(min=1e-30), scale, torch.ones_like(scale))
