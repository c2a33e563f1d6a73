"""Gradient boosting of scikit-learn as tensors: its trees, in the inputs and outputs of a network for tables.

Shapes: N rows, J columns of boosting, F inputs of the network, K outputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from skipway.errors import SkipwayError
from skipway.models.tree_ensemble import Trees, TreeSizes

__all__ = ["TreeInputs", "convert_trees"]

_TOLERANCE = 1e-4  # of the outputs, relative to the largest one
_WORD = 32  # bits of a word in the sets of categories


@dataclass(frozen=True)
class TreeInputs:
    """Inputs of a network in which boosting finds its columns.

    Attributes:
        places: (J,) input that holds each column of boosting.
        indicator: (N,) input that marks a missing value of each number, or -1.
        in_features: number F of inputs.
        categories: number of indices of each of the last inputs.
    """

    places: np.ndarray
    indicator: np.ndarray
    in_features: int
    categories: tuple[int, ...]


@dataclass(frozen=True)
class _Nodes:
    """Nodes of one tree, by the names of the buffers of `Trees`, and their depth."""

    tensors: dict[str, np.ndarray]
    levels: int


def convert_trees(
    models: Sequence[tuple[Any, np.ndarray]], bias: np.ndarray, inputs: TreeInputs, x: np.ndarray, expected: np.ndarray
) -> Trees:
    """Convert models of gradient boosting to one sum of trees, and compare its outputs with theirs.

    Args:
        models: fitted HistGradientBoostingClassifier or HistGradientBoostingRegressor, each with factors (trees of a
            step, K) of its raw outputs in the outputs of the network.
        bias: (K,) outputs without the models.
        inputs: inputs of the network.
        x: (N, F) inputs to compare on.
        expected: (N, K) outputs of the models for these.

    Returns:
        The trees, in float32. A float32 input takes the same way as in scikit-learn.

    Raises:
        SkipwayError: the outputs differ, because scikit-learn has changed.
    """
    trees, of_output, bias = [], [], bias.astype(np.float64)
    for model, factors in models:
        order = _column_order(model, len(inputs.places))
        bias = bias + np.asarray(model._baseline_prediction, np.float64).reshape(-1) @ factors
        known = _known_categories(model)
        for step in model._predictors:
            trees += [_convert_tree(tree, order, known, inputs) for tree in step]
            of_output += list(factors)
    converted = _joined(trees, np.array(of_output).reshape(len(trees), len(bias)), bias, inputs)
    with torch.inference_mode():
        outputs = converted(torch.from_numpy(x)).numpy()
    scale = max(1.0, float(np.abs(expected).max(initial=0.0)))
    difference = float(np.abs(outputs - expected).max(initial=0.0)) / scale
    if not difference < _TOLERANCE:
        import sklearn

        raise SkipwayError(
            f"cannot convert gradient boosting: expected the outputs of scikit-learn, got a difference of "
            f"{difference:.2g} with version {sklearn.__version__}. Install another version of scikit-learn."
        )
    return converted


def _column_order(model: Any, count: int) -> np.ndarray:
    """Return the columns of a model in the order of its trees: categories come first."""
    if model.is_categorical_ is None:
        return np.arange(count)
    return np.concatenate([np.flatnonzero(model.is_categorical_), np.flatnonzero(~model.is_categorical_)])


def _known_categories(model: Any) -> list[np.ndarray]:
    """Return the indices of each column of categories that occur in the training rows, in the order of their codes."""
    if model.is_categorical_ is None:
        return []
    return [values.astype(int) for values in model._preprocessor.named_transformers_["encoder"].categories_]


def _convert_tree(tree: Any, order: np.ndarray, known: Sequence[np.ndarray], inputs: TreeInputs) -> _Nodes:
    """Convert one tree; `table` counts from the first entry of its own `goes_left`."""
    nodes, numbers = tree.nodes, len(inputs.indicator)
    count, is_leaf = len(nodes), nodes["is_leaf"].astype(bool)
    place = inputs.places[order[nodes["feature_idx"]]]
    is_category = nodes["is_categorical"].astype(bool) & ~is_leaf
    goes_left = nodes["missing_go_to_left"].astype(bool)
    # Numbers are in two forms, by the way that missing ones go; categories follow.
    tested = np.where(place < numbers, place + numbers * goes_left, place + numbers)
    table, entries, end = np.full(count, -1), [], 0
    for node in np.flatnonzero(is_category):
        entries.append(_branches(tree, nodes[node], known[nodes["feature_idx"][node]], inputs, place[node] - numbers))
        table[node], end = end, end + len(entries[-1])
    itself = np.arange(count)
    left, right = (np.where(is_leaf, itself, nodes[name].astype(np.int64)) for name in ("left", "right"))
    tensors = {
        "inputs": np.where(is_leaf, 0, tested),
        "threshold": _rounded_down(np.select([is_leaf, is_category], [0.0, -np.inf], nodes["num_threshold"])),
        "table": table,
        "goes_left": np.concatenate(entries) if entries else np.zeros(0, bool),
        "successors": np.stack([left, right], axis=1).reshape(-1),
        "value": np.where(is_leaf, nodes["value"], 0.0).astype(np.float32),
    }
    return _Nodes(tensors, int(nodes["depth"].max()))


def _branches(tree: Any, node: Any, known: np.ndarray, inputs: TreeInputs, slot: int) -> np.ndarray:
    """Return (indices,) True for the indices of a category that go left; unknown ones go the way of missing values."""
    goes_left = np.full(inputs.categories[slot], bool(node["missing_go_to_left"]))
    words, codes = tree.raw_left_cat_bitsets[node["bitset_idx"]], np.arange(len(known))
    goes_left[known] = (words[codes // _WORD] >> (codes % _WORD).astype(np.uint32)) & 1
    return goes_left


def _rounded_down(thresholds: np.ndarray) -> np.ndarray:
    """Return the largest finite float32 numbers up to the thresholds: finite float32 numbers compare alike."""
    most = np.finfo(np.float32).max  # an infinite threshold separates missing values from all others
    rounded = np.clip(thresholds, -most, most).astype(np.float32)
    return np.where(rounded > thresholds, np.nextafter(rounded, -most), rounded)


def _joined(trees: Sequence[_Nodes], of_output: np.ndarray, bias: np.ndarray, inputs: TreeInputs) -> Trees:
    """Return the sum of trees as one module."""
    counts = [len(tree.tensors["value"]) for tree in trees]
    branches = [len(tree.tensors["goes_left"]) for tree in trees]
    starts, tables = (np.cumsum([0, *sizes])[:-1] for sizes in (counts, branches))
    parts: dict[str, list[np.ndarray]] = {name: [] for name in (trees[0].tensors if trees else ())}
    for tree, start, table in zip(trees, starts, tables, strict=True):
        places = tree.tensors["table"]
        moved = {
            "successors": tree.tensors["successors"] + start,
            "table": np.where(places < 0, places, places + table),
        }
        for name, values in {**tree.tensors, **moved}.items():
            parts[name].append(values)
    state = {name: np.concatenate(values) for name, values in parts.items()}
    state |= {"roots": starts, "of_output": of_output, "bias": bias, "indicator": inputs.indicator}
    levels = max((tree.levels for tree in trees), default=0)
    sizes = TreeSizes(len(trees), sum(counts), levels, sum(branches))
    module = Trees(sizes, inputs.in_features, inputs.categories, len(bias))
    like = module.state_dict()
    module.load_state_dict(like | {name: torch.from_numpy(v).to(like[name].dtype) for name, v in state.items()})
    return module.eval()
