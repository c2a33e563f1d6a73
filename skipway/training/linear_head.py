"""Linear probe: L2-regularized multinomial logistic regression on fixed features, fitted with L-BFGS.

    sum over samples of weight * cross-entropy + penalty / 2 * (squared norm of the weights of standardized features)

Cross-validation chooses the penalty with the smallest loss. The loss is a sum over samples, so that a penalty chosen on
a subset suits the full set.

Shapes: N samples, D features, K classes.
Sources: L-BFGS, Liu and Nocedal 1989; bound on the curvature of the multinomial likelihood, by which the problem is
preconditioned, Boehning 1992.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from skipway.data.stratified_split import fold_numbers
from skipway.errors import NotFiniteError

__all__ = ["PENALTIES", "LinearHead", "fit_linear_head", "held_out_folds"]

PENALTIES = tuple(10.0**exponent for exponent in (4, 3.5, 3, 2.5, 2, 1.5, 1, 0.5, 0, -0.5, -1, -2))
_FOLDS = 5
_MAX_CHOOSING = 4_000  # samples used to choose the penalty
_CHOOSING_STEPS, _FINAL_STEPS = 30, 200  # L-BFGS stops earlier if the gradient vanishes
_TOLERANCE = 1e-5  # of the gradient of the mean loss
_WORSE = 2  # the search stops after this many consecutive penalties without a smaller held-out loss
_CURVATURE = 0.5  # upper bound of the second derivative of the cross-entropy in the logits


@dataclass(frozen=True)
class LinearHead:
    """Hold a fitted linear layer for features that are not standardized.

    Attributes:
        weight: (K, D).
        bias: (K,).
        penalty: L2 penalty.
        accuracy: accuracy on the held-out folds, in [0, 1]; NaN if the penalty was passed by the caller.
    """

    weight: Tensor
    bias: Tensor
    penalty: float
    accuracy: float


def fit_linear_head(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    class_weights: Sequence[float] | None = None,
    penalty: float | None = None,
    seed: int = 0,
    groups: Tensor | None = None,
) -> LinearHead:
    """Fit a linear classifier to features. The result is deterministic.

    Args:
        features: (N, D) float32, or float64 for a solution of higher precision.
        labels: (N,) class indices.
        num_classes: number of logits; classes without samples are allowed.
        class_weights: weight of the samples of each class, default 1.
        penalty: L2 penalty; None chooses it from PENALTIES by cross-validation.
        seed: seed of the folds.
        groups: (N,) group index of each sample, default a group per sample. Samples of a group, such as views of an
            image, are held out together.

    Returns:
        The weight and bias of the layer, the penalty and the held-out accuracy.

    Raises:
        NotFiniteError: a feature is NaN or infinite.
    """
    if not features.isfinite().all():
        raise NotFiniteError(
            "cannot fit a linear head: expected finite features, got NaN or infinity. Check the pretrained weights, or "
            "train in --precision fp32."
        )
    sample_weights = torch.ones(len(labels), dtype=features.dtype)
    if class_weights is not None:
        sample_weights = torch.tensor(class_weights, dtype=features.dtype)[labels]
    mean, scale = features.mean(0), _positive(features.std(0, correction=0))
    standardized = (features - mean) / scale
    basis, curvature = _principal_axes(standardized)
    problem = _Problem(standardized @ basis, labels, curvature, num_classes)
    accuracy, start = math.nan, None
    if penalty is None:
        penalty, accuracy, start = _choose_penalty(problem, sample_weights, seed, groups)
    solution = problem.solve(sample_weights[:, None], penalty, start, _FINAL_STEPS)[:, 0]
    weight = (basis @ solution[:-1]).T / scale
    bias = solution[-1] - weight @ mean
    return LinearHead(weight, bias - bias.mean(), penalty, accuracy)


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
    names = range(len(labels)) if groups is None else groups.tolist()
    return torch.from_numpy(fold_numbers(labels.numpy(), list(map(str, names)), folds, seed) - 1)


@dataclass(frozen=True)
class _Problem:
    """Hold the features in their principal axes, and the labels.

    F classifiers are fitted at once, each with different sample weights: one per fold, or F = 1 for all samples.
    Solutions are (D + 1, F, K) with the bias last.
    """

    features: Tensor
    labels: Tensor
    curvature: Tensor  # (D,) mean square of the features along each axis
    num_classes: int

    def solve(self, weights: Tensor, penalty: float, start: Tensor | None, steps: int) -> Tensor:
        """Minimize the loss for the sample weights (N, F).

        Rescaling each axis by its curvature improves the conditioning, so that a few dozen steps are enough.
        """
        count, dim = self.features.shape
        shape = (dim + 1, weights.shape[1], self.num_classes)
        rescale = (_CURVATURE * self.curvature + penalty / count).rsqrt()[:, None]
        rescaled, exact = self.features * rescale.T, self.features.dtype == torch.float64
        if start is None:
            start = torch.zeros(shape, dtype=rescaled.dtype)
        start = start.flatten(1)
        variables = torch.cat([start[:-1] / rescale, start[-1:]]).requires_grad_()
        share = (weights / count)[:, :, None]
        decay = penalty / count * rescale.square()
        target = F.one_hot(self.labels, self.num_classes).to(rescaled.dtype)[:, None] * share
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
                log_shares = torch.addmm(bias, rescaled, weight).unflatten(1, shape[1:]).log_softmax(2)
                loss = -(log_shares * target).sum() + 0.5 * (decay * weight.square()).sum()
                slope = (log_shares.exp_() * share - target).flatten(1)
                variables.grad = torch.cat([rescaled.T @ slope + decay * weight, slope.sum(0, keepdim=True)])
            return loss

        optimizer.step(closure)
        solved = variables.detach()
        return torch.cat([solved[:-1] * rescale, solved[-1:]]).unflatten(1, shape[1:])

    def evaluate(self, solution: Tensor, weights: Tensor) -> tuple[float, float]:
        """Compute the weighted sums of the loss and of the correct predictions for sample weights (N, F)."""
        logits = torch.addmm(solution[-1].flatten(), self.features, solution[:-1].flatten(1))
        log_shares = logits.unflatten(1, solution.shape[1:]).log_softmax(2)
        losses = -log_shares.gather(2, self.labels[:, None, None].expand(*weights.shape, 1))[..., 0]
        correct = log_shares.argmax(2) == self.labels[:, None]
        return float((losses * weights).sum()), float((correct * weights).sum())


def _choose_penalty(
    problem: _Problem, sample_weights: Tensor, seed: int, groups: Tensor | None
) -> tuple[float, float, Tensor | None]:
    """Return the penalty with the smallest held-out loss, the held-out accuracy, and the mean of the solutions.

    The search starts with the strongest penalty. Each solution initializes the next one.
    """
    chosen = _subset(problem.labels, seed, groups)
    fold = held_out_folds(problem.labels[chosen], seed, None if groups is None else groups[chosen])
    part = replace(problem, features=problem.features[chosen], labels=problem.labels[chosen])
    held_out = F.one_hot(fold).to(sample_weights.dtype)
    fitted_weights = (1 - held_out) * sample_weights[chosen, None]
    held_out_weights = held_out * sample_weights[chosen, None]
    best, worse, solution, mean_solution = (math.inf, PENALTIES[0], 0.0), 0, None, None
    for penalty in PENALTIES:
        solution = part.solve(fitted_weights, penalty, solution, _CHOOSING_STEPS)
        loss, correct = part.evaluate(solution, held_out_weights)
        worse += 1
        if loss < best[0]:
            best, worse, mean_solution = (loss, penalty, correct), 0, solution.mean(1, keepdim=True)
        if worse == _WORSE:
            break
    return best[1], best[2] / float(held_out_weights.sum()), mean_solution


def _subset(labels: Tensor, seed: int, groups: Tensor | None) -> Tensor:
    """Return the indices of a stratified subset of whole groups, on which the penalty is chosen."""
    if len(labels) <= _MAX_CHOOSING:
        return torch.arange(len(labels))
    parts = -(-len(labels) // _MAX_CHOOSING)
    return (held_out_folds(labels, seed, groups, folds=parts) == 0).nonzero()[:, 0]


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
