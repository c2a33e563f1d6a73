"""Ridge regression on fixed features, in closed form.

    sum over samples of weight * squared error + penalty * (squared norm of the weights of standardized features)

Leave-one-out cross-validation chooses the penalty. In the principal axes of the features it needs no further fit.

Shapes: N samples, D features, R principal axes, T targets.
Source: leave-one-out errors of linear smoothers, Allen 1974.
"""

import torch
from torch import Tensor

from skipway.training.linear_head import LinearHead, principal_axes

__all__ = ["RIDGE_PENALTIES", "fit_ridge_head"]

RIDGE_PENALTIES = tuple(10.0 ** (exponent / 2) for exponent in range(12, -7, -1))


def fit_ridge_head(
    features: Tensor, targets: Tensor, *, penalty: float | None = None, sample_weights: Tensor | None = None
) -> LinearHead:
    """Fit a linear layer that predicts numbers from features. The result is deterministic.

    Args:
        features: (N, D).
        targets: (N, T) standardized numbers.
        penalty: L2 penalty; None chooses the one with the smallest leave-one-out error from RIDGE_PENALTIES.
        sample_weights: (N,) weights of the samples, default 1.

    Returns:
        The weight and bias of the layer, the penalty and the leave-one-out R2, averaged over the targets.

    Raises:
        NotFiniteError: a feature is NaN or infinite.
    """
    axes, dtype = principal_axes(features, sample_weights), features.dtype
    weights = torch.ones(len(targets)) if sample_weights is None else sample_weights
    root = weights.to(dtype).sqrt()[:, None]
    y, total = targets.to(dtype), root.square().sum()
    # The intercept is not penalized: it is removed by centering on the weighted means.
    center_x, center_y = ((root.square() * values).sum(0) / total for values in (axes.features, y))
    x, y = root * (axes.features - center_x), root * (y - center_y)
    squares, rotation = torch.linalg.eigh((x.T @ x).double())
    used = squares > squares[-1].clamp(min=1e-30) * 1e-10
    squares, rotation = squares[used].to(dtype), rotation[:, used].to(dtype)
    left = x @ rotation / squares.sqrt()  # (N, R) orthonormal columns
    projected, leverage_of_mean = left.T @ y, root.square() / total
    spread = y.square().sum(0).clamp(min=1e-30)
    best: tuple[Tensor, float] | None = None
    for candidate in RIDGE_PENALTIES if penalty is None else (penalty,):
        shrunk = (squares / (squares + candidate))[:, None]
        leverage = leverage_of_mean + left.square() @ shrunk
        errors = ((y - left @ (shrunk * projected)) / (1 - leverage).clamp(min=1e-6)).square().sum(0)
        if best is None or errors.sum() < best[0].sum():
            best = errors, candidate
    assert best is not None
    errors, chosen = best
    weight = rotation @ ((squares.sqrt() / (squares + chosen))[:, None] * projected)
    layer = axes.layer(torch.cat([weight, (center_y - center_x @ weight)[None]]))
    score = float((1 - errors / spread).mean()) if penalty is None else float("nan")
    return LinearHead(*layer, chosen, score)
