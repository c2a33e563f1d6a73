"""Ensemble of the network of a table and gradient boosting: its weights by held-out training rows, and its network.

A network and boosting are trained on a part of the training rows. The weights of their outputs, logits or standardized
numbers, are those with the lowest loss on the rest. The rows that evaluate the run take no part.
Source: stacked generalization, Wolpert 1992, "Stacked generalization".

Shapes: N rows, K outputs.
"""

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from typing import Any, Self, cast

import numpy as np
import torch
from torch import Tensor, nn

from skipway.data.tables.loader import RowBatches
from skipway.data.tables.table_spec import TableSpec
from skipway.errors import InputError
from skipway.models.network import Network, build_meta_network
from skipway.models.tree_ensemble import ENSEMBLE, TREES
from skipway.nn.shape_inference import evaluation
from skipway.nn.skip import Skip
from skipway.runs.boosting import Boosting, fit_boosting, unfit_reason
from skipway.runs.table_network import FEWEST_ROWS
from skipway.training.loop import fit
from skipway.training.losses import Task
from skipway.training.scores import ClassScores, RegressionScores, Scores
from skipway.training.temperature import best_temperature
from skipway.training.trainer import Settings, State, Trainer
from skipway.utils.console import Console
from skipway.utils.stop_signals import StopFlag

__all__ = [
    "SHARE_OF_TIME",
    "Ensemble",
    "TrainingRows",
    "choose_ensemble",
    "ensemble_network",
    "ensemble_parts",
    "find_ensemble",
    "refuse_ensemble",
]

SHARE_OF_TIME = 0.4  # of the time limit of a run, for the network on a part of the rows
_WEIGHTS = np.round(np.linspace(0.0, 1.0, 21), 2)
_PRIOR_STD = 0.5  # of the weight of boosting: a few rows must not decide for boosting alone
_SMALLEST = 1e-12  # loss
_MOST_ROWS = 5_000  # for classes, whose temperature is fitted for each weight
_ROWS = 4096  # per batch


@dataclass(frozen=True)
class Ensemble:
    """Weights of a network and of boosting, and their losses on the held-out training rows.

    Attributes:
        weight: weight of boosting; that of the network is the rest. With 0, there is only the network.
        temperature: divisor of the weighted logits; 1 for labels and numbers.
        rows: number N of held-out rows.
        network_loss, boosting_loss, loss: mean losses of both and of the ensemble.
    """

    weight: float
    temperature: float
    rows: int
    network_loss: float
    boosting_loss: float
    loss: float

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Create an ensemble from the dictionary of `as_dict`."""
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        """Return the values as a dictionary for JSON."""
        return asdict(self)

    def describe(self) -> str:
        """Return a line about the weights and how they were chosen."""
        losses = f"loss {self.network_loss:.4g} of the network, {self.boosting_loss:.4g} of boosting"
        where = f"on {self.rows:,} held-out training rows"
        if not self.weight:
            return f"boosting brought nothing {where}: not blended ({losses})"
        shares = f"boosting has weight {self.weight:.2f}, the network {1 - self.weight:.2f}"
        return f"{shares}: {losses}, {self.loss:.4g} of both {where}"


@dataclass(frozen=True)
class TrainingRows:
    """Encoded rows of a table, with what boosting needs to have the loss of the network.

    Attributes:
        spec: encoders of the columns.
        x: (N, F) inputs.
        y: classes (N,), or labels or standardized numbers (N, K).
        weights: (N,) weights of the rows, or None.
        label_weights: (K,) factors of the weights of rows with each label, or None.
    """

    spec: TableSpec
    x: np.ndarray
    y: np.ndarray
    weights: np.ndarray | None = None
    label_weights: tuple[float, ...] | None = None

    def boosting(self, rows: np.ndarray) -> Boosting:
        """Return boosting that is trained on some of the rows."""
        weights = None if self.weights is None else self.weights[rows]
        return fit_boosting(self.spec, self.x[rows], self.y[rows], weights, self.label_weights)


def refuse_ensemble(spec: TableSpec, count: int, *, can_hold_out: bool) -> None:
    """Raise an error if boosting cannot be fitted, or no rows can be held out to choose the weights by.

    Args:
        spec: encoders of the columns.
        count: training rows.
        can_hold_out: some of the rows can be held out.

    Raises:
        InputError: an ensemble is not possible.
    """
    expected = unfit_reason(spec)
    if not expected and not (can_hold_out and count >= FEWEST_ROWS):
        expected = f"expected at least {FEWEST_ROWS} training rows, of which some can be held out, got {count:,}"
    if expected:
        raise InputError(f"cannot blend with boosting: {expected}. Drop ensemble_with.")


def choose_ensemble(network: np.ndarray, boosting: np.ndarray, task: Task, y: np.ndarray, weights: Any) -> Ensemble:
    """Choose the weights of two models by their outputs for held-out rows.

    The weight of boosting has the highest likelihood, with a normal prior around 0 with standard deviation 0.5. The
    prior keeps the weight small for a few rows, and has little influence for hundreds.

    Args:
        network: (N, K) outputs of the network.
        boosting: (N, K) outputs of boosting.
        task: task with the loss.
        y: targets.
        weights: (N,) weights of the rows, or None.
    """
    step = -(-len(y) // _MOST_ROWS) if y.ndim == 1 else 1
    network, boosting, y = network[::step], boosting[::step], y[::step]
    weights = None if weights is None else weights[::step]
    scored = [_scored((1 - w) * network + w * boosting, task, y, weights) for w in _WEIGHTS]
    losses = np.array([scores.loss for scores, _ in scored])
    chosen = int(np.argmin(_negative_log_likelihoods(losses, scored[0][0], y) + (_WEIGHTS / _PRIOR_STD) ** 2 / 2))
    temperature = scored[chosen][1] if chosen else 1.0
    parts = (float(losses[i]) for i in (0, -1, chosen))
    return Ensemble(float(_WEIGHTS[chosen]), temperature, len(y), *parts)


def _negative_log_likelihoods(losses: np.ndarray, scores: Scores, y: np.ndarray) -> np.ndarray:
    """Return the sum over the rows of each mean loss, in nats; inf for one that is not finite.

    The mean loss of numbers is their variance around the outputs, at which the likelihood is highest.
    """
    losses = np.where(np.isfinite(losses), losses, math.inf)
    if isinstance(scores, RegressionScores):
        losses = np.log(np.maximum(losses, _SMALLEST)) / 2
    return losses * y.size


def _scored(outputs: np.ndarray, task: Task, y: np.ndarray, weights: np.ndarray | None) -> tuple[Scores, float]:
    """Return the scores of outputs, and the temperature of classes that they are divided by."""
    targets, ids = torch.from_numpy(y), np.arange(len(y))

    def scores_of(values: np.ndarray) -> Scores:
        return replace(task.scores(torch.from_numpy(values).float(), targets, ids), weights=weights)

    scores = scores_of(outputs)
    if not isinstance(scores, ClassScores) or not scores.finite().all():
        return scores, 1.0
    temperature = best_temperature(scores)
    return scores_of(outputs / temperature), temperature


def find_ensemble(
    network: Network,
    settings: Settings,
    task: Task,
    data: TrainingRows,
    rows: np.ndarray,
    held_out: np.ndarray,
    *,
    batches: Callable[[np.ndarray, int | None], RowBatches],
    stop: StopFlag,
) -> Ensemble:
    """Train a network and boosting on a part of the training rows, and choose their weights by the others.

    Args:
        network: the initial network of the run; a copy of it is trained.
        settings: settings of the run.
        task: task of the run.
        data: encoded rows.
        rows: (N,) training rows.
        held_out: (N,) True for the rows to hold out.
        batches: returns the batches of rows, shuffled if a seed is given.
        stop: flag that ends the training with an error.
    """
    fitted, rest = rows[~held_out], rows[held_out]
    outputs = _held_out_outputs(network, settings, task, batches(fitted, settings.seed), batches(rest, None), stop)
    of_trees = data.boosting(fitted).raw_outputs(data.x[rest])
    weights = None if data.weights is None else data.weights[rest]
    return choose_ensemble(outputs, of_trees, task, data.y[rest], weights)


def _held_out_outputs(
    network: Network, settings: Settings, task: Task, train: RowBatches, held_out: RowBatches, stop: StopFlag
) -> np.ndarray:
    """Train a copy of the network, and return its outputs (N, K) for the held-out rows."""
    limit = settings.time_limit
    settings = replace(settings, time_limit=None if limit is None else SHARE_OF_TIME * limit)
    trainer = Trainer(deepcopy(network), settings, str, task)
    kept: dict[str, Tensor] = {}

    def on_epoch(state: State, weights: dict[str, Tensor] | None) -> None:
        kept.update({name: value.clone() for name, value in (weights or {}).items()})

    validation = held_out if settings.kept_epoch == "best" else None
    fit(trainer, train, validation, None, on_epoch=on_epoch, facts={}, console=Console(quiet=True), stop=stop)
    model = trainer.eval_model
    if kept:  # only in the first process, which alone uses the result
        model.load_state_dict(kept)
    x = held_out.x[torch.from_numpy(held_out.rows)]
    with evaluation(model), torch.inference_mode():
        outputs = [model(part.to(trainer.device)).cpu().double() for part in x.split(_ROWS)]
    return torch.cat(outputs).numpy()


def ensemble_network(network: Network, boosting: Boosting, ensemble: Ensemble) -> Network:
    """Return a network that is the weighted sum of a network and boosting.

    Args:
        network: the network, whose tensors are reused.
        boosting: boosting that was trained on the same rows.
        ensemble: weights of both.
    """
    trees = boosting.trees()
    sizes = asdict(trees.sizes)
    plan, like = {**network.plan, TREES: sizes}, next(network.parameters())
    joined = build_meta_network(plan, network.spec)
    shares = torch.tensor([1 - ensemble.weight, ensemble.weight]) / ensemble.temperature
    state = {f"{ENSEMBLE}.body.{name}": value for name, value in network.state_dict().items()}
    state |= {f"{ENSEMBLE}.shortcut.{name}": value for name, value in trees.state_dict().items()}
    state[f"{ENSEMBLE}.join.weights"] = shares
    joined.load_state_dict(state, assign=True)
    joined.origin = network.origin
    return joined.to(device=like.device, dtype=like.dtype).eval()


def ensemble_parts(network: Network) -> dict[str, nn.Module]:
    """Return the network and the boosting of an ensemble by name, or nothing for a network alone."""
    if TREES not in network.plan:
        return {}
    joined = network.get_submodule(ENSEMBLE)
    assert isinstance(joined, Skip)
    return {"network": joined.body, "boosting": cast(nn.Module, joined.shortcut)}
