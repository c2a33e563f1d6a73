"""Parallel: branches that run side by side, and the join of their outputs.

Shapes: those that the branches accept, and that the join returns.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from skipway.errors import InputError
from skipway.nn.chain import Chain, Layer
from skipway.nn.channel_axis import check_dim, resolve_dim
from skipway.nn.code_repr import show
from skipway.nn.extra_inputs import ExtraInputs, taken_inputs, with_extra_inputs
from skipway.nn.in_place import refuse_in_place_change, version_of
from skipway.nn.join_errors import need_tensors
from skipway.nn.joins import make_join, name_of_join, name_or_module, refuse_join_name, takes_dim
from skipway.nn.named_errors import NamedErrors, named_errors

__all__ = ["Parallel"]


class Parallel(NamedErrors, ExtraInputs):
    """Join the outputs of several branches: `join(branch1(x), branch2(x), ...)`.

    With as many inputs as branches, each branch takes its input. Inputs passed by name, such as a mask, go to the
    branches that take them. `Parallel(join, body, nn.Identity())` computes the same as `Skip(body, join=join)`. The
    join is called once, with all outputs.

    Args:
        join: name of a join, or a function or module that takes all outputs.
        branches: modules or functions, named by position.
        dim: axis of the channels for the joins "concat", "append", "gate" and "layerscale". None takes it from branches
            that end in a linear layer (-1) or a convolution (1), and 1 otherwise.
        named: modules or functions with names.

    Raises:
        InputError: there is no branch, the number of inputs fits neither form, or a branch modifies the shared input.

    >>> import torch
    >>> Parallel("concat", nn.Linear(4, 2), nn.Linear(4, 3))(torch.ones(1, 4)).shape
    torch.Size([1, 5])
    """

    def __init__(
        self, join: str | Callable[..., Any], *branches: Layer, dim: int | None | Layer = None, **named: Layer
    ):
        super().__init__()
        if not branches and not named:
            raise InputError(
                "Parallel: expected at least one branch after the join, got none. Pass modules or functions."
            )
        self.dim: int | None = check_dim("Parallel", dim)
        self.join = make_join(join)
        self.branches = Chain(*branches, **named)

    @named_errors
    @with_extra_inputs
    def forward(self, x: Tensor) -> Any:
        """Pass one input to all branches, or one input to each, and join the outputs."""
        return self._joined(self._outputs_of(x))

    def forward_with(self, x: Any, extra: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        """Pass one input to all branches or one to each, and named inputs to the branches that take them."""
        count, inputs = len(self.branches), (x, *extra)
        if extra and len(inputs) != count:
            raise InputError(
                f"expected 1 or {count} inputs for its {count} branches, got {len(inputs)}. Pass one "
                "input for all, or one for each, and further ones by name."
            )
        unused = sorted(set(named) - self.takes(0, named)[1])
        if unused:
            raise InputError(
                f"expected a branch whose forward takes argument {unused[0]!r}, got none. Pass one input for each "
                "branch without names, or add such a branch."
            )
        if not extra:
            return self._joined(self._outputs_of(x, named))
        return self._joined([_call(branch, own, named) for branch, own in zip(self.branches, inputs, strict=True)])

    def _joined(self, outputs: list[Any]) -> Any:
        if takes_dim(self.join):
            need_tensors(name_of_join(self.join), tuple(outputs))
            return self.join(*outputs, dim=resolve_dim(self.dim, self.branches, outputs[0]))
        return self.join(*outputs)

    def _outputs_of(self, x: Any, named: Mapping[str, Any] | None = None) -> list[Any]:
        """Return the outputs of all branches for one input, which no branch but the last may modify."""
        outputs: list[Any] = []
        version, before = version_of(x), ""
        for name, branch in self.branches.named_children():
            refuse_in_place_change(x, version, f"{before!r} or {name!r}")
            outputs.append(_call(branch, x, named) if named else branch(x))
            before = name
        return outputs

    def takes(self, count: int, names: Collection[str]) -> tuple[bool, set[str]]:
        """Return True if there is a branch for the main input and each extra one, and the names that branches take."""
        taken = (taken_inputs(branch, 0, names)[1] for branch in self.branches)
        return count > 0 and 1 + count == len(self.branches), set().union(*taken)

    def __getitem__(self, place: int | slice | str) -> Any:
        """Return the branch at an index or of a name, or a Chain of the branches of a slice."""
        return self.branches[place]

    def __len__(self) -> int:
        return len(self.branches)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.branches)

    def __setattr__(self, name: str, value: Any) -> None:
        refuse_join_name(name, value)
        super().__setattr__(name, value)

    def parts(self) -> list[tuple[str, nn.Module | str]]:
        """Return the join, then the branches by name, and the axis of the channels."""
        dim: list[tuple[str, nn.Module | str]] = [] if self.dim is None else [("dim", str(self.dim))]
        return [("0", name_or_module(self.join)), *self.branches.named_children(), *dim]

    def __repr__(self) -> str:
        return show(self)


def _call(branch: nn.Module, x: Any, named: Mapping[str, Any]) -> Any:
    """Return the output of a branch, with those of the named inputs that it takes."""
    return branch(x, **{name: named[name] for name in taken_inputs(branch, 0, named)[1]})
