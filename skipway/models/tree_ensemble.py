"""Boosted trees as tensors, and the connection that adds them to a network for tables.

    outputs = join(body(x), shortcut(x)), with the network as body, the trees as shortcut, and fixed weights in the join

The trees are buffers, which gradients do not reach. All trees go down one level at a time, for all rows at once.

Shapes: B rows, F inputs, N of them numbers, T trees, M nodes of all trees, K outputs.
Sources: traversal of trees by tensor operations, Nakandala et al. 2020, arXiv:2010.04804; weighted outputs of several
models, Wolpert 1992, "Stacked generalization".
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from skipway.errors import InputError
from skipway.nn.chain import Chain
from skipway.nn.join_errors import need_equal_shapes
from skipway.nn.skip import Skip
from skipway.utils.tracing import is_traced
from skipway.utils.whole_number import whole_number

__all__ = ["ENSEMBLE", "TREES", "Blend", "TreeSizes", "Trees", "add_trees", "refuse_trees"]

ENSEMBLE = "ensemble"  # layer of a network that joins it with trees
TREES = "trees"  # key of a plan with the sizes of the trees
_MOST = 100_000_000  # trees, nodes or branches: a malicious plan must not fill the memory
_MOST_LEVELS = 1000
_MOST_PLACES = 200_000  # rows times trees that are computed at once: their tensors fit in a cache


@dataclass(frozen=True)
class TreeSizes:
    """Value of the key `trees` of a plan.

    Args:
        trees: number T of trees.
        nodes: number M of nodes, leaves included.
        levels: depth of the deepest leaf.
        branches: entries of the tables of the tests of categories: for each index, True if it goes left.
    """

    trees: int
    nodes: int
    levels: int
    branches: int

    @classmethod
    def of(cls, values: Any) -> "TreeSizes":
        """Create the sizes from the values of a plan.

        Raises:
            InputError: a name or a value is invalid.
        """
        try:
            sizes = cls(**{name: whole_number(value) for name, value in values.items()})
            counts = (sizes.trees, sizes.nodes, sizes.branches)
            is_usable = min(*counts, sizes.levels) >= 0 and max(counts) <= _MOST and sizes.levels <= _MOST_LEVELS
        except (TypeError, AttributeError):
            is_usable = False
        if not is_usable or sizes.trees > sizes.nodes:
            raise InputError(
                "cannot read the plan: expected trees, nodes, levels and branches as the sizes of boosted trees, got "
                f"{str(values)[:80]!r}. Write the file again."
            )
        return sizes


class Trees(nn.Module):
    """Sum of boosted trees: (B, F) -> (B, K).

    A test of a number goes left if the number is at most the threshold. Missing numbers, which an indicator input
    marks, go where the test sends them. A test of a category looks its index up.

    Args:
        sizes: numbers of trees and nodes.
        in_features: number F of inputs, the encoded row of a table.
        categories: number of indices of each of the last inputs; an index outside is mapped to index 0.
        num_outputs: number K of outputs.

    Attributes:
        indicator: (N,) input that marks a missing value of each number, or -1.
        roots: (T,) first node of each tree.
        inputs: (M,) input that a node tests, plus N if its missing values go left.
        threshold: (M,) largest number that goes left; below all of them for tests of a category.
        table: (M,) place of index 0 in `goes_left` for tests of a category, or -1.
        goes_left: (branches,) True for indices that go left.
        successors: (2 M,) next node to the left and to the right of each node; a leaf is followed by itself.
        value: (M,) value of a leaf.
        of_output: (T, K) factor of each tree in each output.
        bias: (K,) outputs without trees.
    """

    indicator: Tensor
    roots: Tensor
    inputs: Tensor
    threshold: Tensor
    table: Tensor
    goes_left: Tensor
    successors: Tensor
    value: Tensor
    of_output: Tensor
    bias: Tensor

    def __init__(self, sizes: TreeSizes, in_features: int, categories: tuple[int, ...], num_outputs: int):
        super().__init__()
        self.sizes, self.in_features, self.categories = sizes, in_features, tuple(categories)
        self.numbers = in_features - len(self.categories)
        self.register_buffer("indicator", torch.full((self.numbers,), -1))
        self.register_buffer("roots", torch.zeros(sizes.trees, dtype=torch.int64))
        self.register_buffer("inputs", torch.zeros(sizes.nodes, dtype=torch.int64))
        self.register_buffer("threshold", torch.zeros(sizes.nodes))
        self.register_buffer("table", torch.full((sizes.nodes,), -1))
        self.register_buffer("goes_left", torch.zeros(sizes.branches, dtype=torch.bool))
        self.register_buffer("successors", torch.zeros(2 * sizes.nodes, dtype=torch.int64))
        self.register_buffer("value", torch.zeros(sizes.nodes))
        self.register_buffer("of_output", torch.zeros(sizes.trees, num_outputs))
        self.register_buffer("bias", torch.zeros(num_outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs; many rows are computed in parts, to bound the memory."""
        x = x.flatten(1)
        if not self.sizes.trees:
            return torch.zeros_like(x[:, :1]) + self.bias
        most = max(1, _MOST_PLACES // self.sizes.trees)
        if is_traced(x) or torch.compiler.is_compiling() or x.shape[0] <= most:
            return self._outputs(x)
        return torch.cat([self._outputs(part) for part in x.split(most)])

    def _outputs(self, x: Tensor) -> Tensor:
        x, node = self._tested(x), torch.zeros_like(x[:, :1], dtype=torch.int64) + self.roots
        for _ in range(self.sizes.levels):
            number = x.gather(1, self.inputs[node])
            is_left = number <= self.threshold[node]
            if self.sizes.branches:
                table = self.table[node]
                place = table.clamp(min=0) + torch.where(table >= 0, number, 0).long()
                is_left = is_left | ((table >= 0) & self.goes_left[place])
            node = self.successors[2 * node + 1 - is_left.long()]
        return self.value[node] @ self.of_output + self.bias

    def _tested(self, x: Tensor) -> Tensor:
        """Return (B, 2 N + F - N): numbers with NaN for missing ones, which go right, with -inf, and the categories."""
        numbers, slots = x[:, : self.numbers], x[:, self.numbers :]
        is_missing = (x.index_select(1, self.indicator.clamp(min=0)) > 0) & (self.indicator >= 0)
        parts = [numbers.masked_fill(is_missing, math.nan), numbers.masked_fill(is_missing, -math.inf)]
        if self.categories:
            is_known = (slots >= 0) & (slots < slots.new_tensor(self.categories))
            parts.append(torch.where(is_known, slots, 0))
        return torch.cat(parts, dim=1)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, metadata: Any, strict: bool, *lists: list[str]
    ) -> None:
        """Load the state.

        Raises:
            InputError: an index of the state is outside of the trees, so that rows would be looked up elsewhere.
        """
        names = [name for name, _ in self.named_buffers()]
        tensors = {name: state_dict[prefix + name] for name in names if prefix + name in state_dict}
        if len(tensors) == len(names) and not any(tensor.is_meta for tensor in tensors.values()):
            if unfit := self._unfit_indices(tensors):
                raise InputError(
                    f"cannot load the trees: expected indices of their nodes and inputs, got others in {unfit}. Write "
                    "the file again."
                )
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, *lists)

    def _unfit_indices(self, tensors: Mapping[str, Tensor]) -> str:
        """Return the name of the first tensor with an index out of range, or an empty text."""
        nodes, width = self.sizes.nodes, self.numbers + self.in_features
        sizes = {"roots": nodes, "successors": nodes, "inputs": width, "indicator": self.in_features}
        for name, size in {**sizes, "table": self.sizes.branches}.items():
            values, lowest = tensors[name], -1 if name in ("indicator", "table") else 0
            if values.numel() and not lowest <= int(values.min()) <= int(values.max()) < size:
                return name
        tests = tensors["table"] >= 0
        slots = tensors["inputs"][tests] - 2 * self.numbers
        if slots.numel() and int(slots.min()) < 0:
            return "inputs"
        ends = tensors["table"][tests] + torch.tensor([*self.categories, 0])[slots]
        return "table" if ends.numel() and int(ends.max()) > self.sizes.branches else ""

    def extra_repr(self) -> str:
        """Return the numbers of trees and nodes."""
        return f"{self.sizes.trees} trees, {self.sizes.nodes:,} nodes, {self.sizes.levels} levels"


class Blend(nn.Module):
    """Join of a network and trees with two fixed weights: `weights[0] * branch + weights[1] * shortcut`.

    Shapes:
        branch (B, K), shortcut (B, K) -> (B, K).

    >>> join = Blend()
    >>> join.weights.copy_(torch.tensor([0.75, 0.25]))
    tensor([0.7500, 0.2500])
    >>> join(torch.ones(1, 2), torch.zeros(1, 2))
    tensor([[0.7500, 0.7500]])
    """

    weights: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weights", torch.tensor([1.0, 0.0]))

    def forward(self, branch: Tensor, shortcut: Tensor) -> Tensor:
        """Return the weighted sum (B, K) of the outputs of the network and of the trees."""
        need_equal_shapes("blend", (branch, shortcut))
        return self.weights[0] * branch + self.weights[1] * shortcut


def add_trees(network: Chain, values: Any, plan: Mapping[str, Any]) -> Chain:
    """Return a network with boosted trees as the shortcut around all its layers.

    Args:
        network: a network for tables.
        values: sizes of the trees, as the key `trees` of a plan holds them.
        plan: plan of the network.

    Raises:
        InputError: the sizes cannot be used, or the network is not one for tables with outputs.
    """
    sizes = TreeSizes.of(values)
    if "in_features" not in plan or not plan.get("num_classes"):
        raise InputError(
            f"cannot add trees: expected a network for tables with outputs, got {plan.get('family')} with "
            f"{plan.get('num_classes')} outputs. Write the file again."
        )
    trees = Trees(sizes, plan["in_features"], tuple(plan["categories"]), plan["num_classes"])
    return Chain({ENSEMBLE: Skip(network, trees, join=Blend())})


def refuse_trees(plan: Mapping[str, Any], action: str) -> None:
    """Raise an error if the network of `plan` is joined with boosted trees.

    Args:
        plan: plan of a network.
        action: what does not support them, such as "grow"; the error starts with it.

    Raises:
        InputError: the plan has trees.

    >>> refuse_trees({"num_classes": 10}, "grow")
    """
    if TREES in plan:
        raise InputError(
            f"cannot {action}: expected a network alone, got one that is blended with boosting. Use a run without "
            "--ensemble-with."
        )
