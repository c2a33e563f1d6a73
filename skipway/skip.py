"""Skip: a body, a shortcut around it, and the join where the two meet.

    out = after(join(body(x), shortcut(x)))

Every residual, dense, highway, gated, scaled or projected connection of this package is one `Skip`. `Chain`,
`Parallel` and `Dense` stand beside it.

Shapes: B batch, C channels, * any further axes.
Sources: He et al. 2015, arXiv:1512.03385; He et al. 2016, arXiv:1603.05027; stochastic depth, Huang et al. 2016,
arXiv:1603.09382.
"""

import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

from torch import Tensor, nn

from skipway.drop_path import DROP_MODES, thinned
from skipway.errors import InputError, ShapeError, did_you_mean
from skipway.joins import Gate, add, append, concat, make_join, multiply
from skipway.shapes import Placed, filling, place, real_tensors
from skipway.shortcuts import SHORTCUTS, fitted_shortcut
from skipway.show import show

__all__ = ["Chain", "Dense", "Function", "Parallel", "Skip", "replace", "walk"]

Layer = nn.Module | Callable[..., Any]


class Function(nn.Module):
    """A function as a layer, so that `Chain(conv, torch.relu)` and `Chain(..., lambda x: x.mean((2, 3)))` work."""

    def __init__(self, function: Callable[..., Any]):
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        """Whatever the function gives."""
        return self.function(*inputs)

    def __repr__(self) -> str:
        return getattr(self.function, "__name__", repr(self.function))


class Chain(Placed, nn.Sequential):
    """Layers one after the other, by position or by name; an `nn.Sequential` that takes functions and prints as code.

    >>> import torch
    >>> Chain(nn.Linear(4, 8), torch.relu, head=nn.Linear(8, 2))(torch.ones(1, 4)).shape
    torch.Size([1, 2])
    """

    def __init__(self, *layers: Layer, **named: Layer):
        super().__init__()
        sliced = len(layers) == 1 and isinstance(layers[0], OrderedDict) and not named  # by nn.Sequential's slices
        if sliced:
            named = cast(dict[str, Layer], layers[0])
            layers = ()
        for name, layer in [*((str(i), layer) for i, layer in enumerate(layers)), *named.items()]:
            if hasattr(self, name) or not name or "." in name:
                raise InputError(
                    f"a Chain cannot call a layer {name!r}: it has an attribute or a layer of that name, or the name "
                    "is empty or holds a dot; choose another"
                )
            self.add_module(name, as_module(layer))
        _say_shared(self)
        place(self, keep=sliced)

    def activations(self, x: Any) -> tuple[Any, ...]:
        """The output of every layer in turn, for an input as `forward` takes it."""
        outputs = []
        for layer in self:
            x = layer(x)
            outputs.append(x)
        return tuple(outputs)

    def __repr__(self) -> str:
        return show(self)


class Dense(Placed):
    """(*, in_features) -> (*, out_features): `activation(x W^T + b)`. `in_features=None` is left to the shape pass.

    >>> import torch
    >>> Dense(4, 2, torch.relu)(torch.ones(3, 4)).shape
    torch.Size([3, 2])
    """

    def __init__(self, in_features: int | None, out_features: int, activation: Layer | None = None, bias: bool = True):
        super().__init__()
        if in_features is None:
            self.linear: nn.Linear = nn.LazyLinear(out_features, bias)
        else:
            self.linear = nn.Linear(in_features, out_features, bias)
        self.activation = None if activation is None else as_module(activation)

    def forward(self, x: Tensor) -> Tensor:
        """(*, in_features) -> (*, out_features)."""
        if isinstance(self.linear, nn.LazyLinear) and not filling():
            raise ShapeError(
                f"{self.where} has no in_features yet; call skipway.output_shape(network, input_shape) once before use"
            )
        y = self.linear(x)
        return y if self.activation is None else self.activation(y)

    def __repr__(self) -> str:
        lazy = isinstance(self.linear, nn.LazyLinear)
        parts = [str(None if lazy else self.linear.in_features), str(self.linear.out_features)]
        parts += [] if self.activation is None else [repr(self.activation)]
        parts += [] if self.linear.bias is not None else ["bias=False"]
        return f"Dense({', '.join(parts)})"


class Parallel(Placed):
    """`join(branch1(x), branch2(x), ...)`; with as many inputs as branches, each branch takes its own.

    `Parallel(join, body, nn.Identity())` is `Skip(body, join=join)`. The join is called once, with all outputs.
    """

    def __init__(self, join: str | Callable[..., Any], *branches: Layer, **named: Layer):
        super().__init__()
        if not branches and not named:
            raise InputError("Parallel needs at least one branch after its join")
        self.join = make_join(join)
        self.branches = Chain(*branches, **named)
        place(self)

    def forward(self, *inputs: Tensor) -> Any:
        """One input for all branches, or one for each."""
        if len(inputs) not in (1, len(self.branches)):
            raise InputError(
                f"{self.where} has {len(self.branches)} branches and takes 1 or {len(self.branches)} inputs, "
                f"not {len(inputs)}"
            )
        if len(inputs) == 1:
            inputs *= len(self.branches)
        outputs = [branch(x) for branch, x in zip(self.branches, inputs, strict=True)]
        try:
            return self.join(*outputs)
        except ShapeError as error:
            raise error.at(self.where) from None

    def parts(self) -> list[tuple[str, nn.Module | str]]:
        """The join, then the branches by name."""
        return [("0", _named(self.join)), *self.branches.named_children()]

    def __repr__(self) -> str:
        return show(self)


class Skip(Placed):
    """`after(join(body(x), shortcut(x)))`.

    Args:
        body: a module, or a list of them: to skip k layers is to have a body of k layers.
        shortcut: None (identity), "project" (1x1 convolution or linear layer, then a norm), "pad" (zeros for new
            channels), "pool" (average pool, then project), "auto" (identity where the shapes agree, else project), or
            a module. What a name needs to know of the sizes is filled in by `output_shape`.
        join: "add", "concat", "append" (concat with the input first), "multiply", "gate" (highway), "scale" (one
            learned number, zero at first), "layerscale" (one for each channel), or any callable or module that takes
            (branch, kept).
        after: what follows the join, such as an activation.
        drop_path: chance that the body is left out while training, and not computed; what stays is divided by the
            chance to stay. Norms in the body see the samples that stay.
        drop_mode: "row" draws for every sample, "batch" once for all of them.

    >>> import torch
    >>> Skip(nn.Linear(4, 4), after=nn.ReLU())(torch.ones(2, 4)).shape
    torch.Size([2, 4])

    Raises:
        ShapeError: the two sides of the join do not fit; names this Skip's path, both shapes and the mend.
    """

    shortcut: nn.Module | None

    def __init__(
        self,
        body: Layer | Sequence[Layer],
        shortcut: Layer | str | None = None,
        *,
        join: str | Callable[..., Any] = "add",
        after: Layer | None = None,
        drop_path: float = 0.0,
        drop_mode: str = "row",
    ):
        super().__init__()
        if isinstance(shortcut, str) and shortcut not in SHORTCUTS:
            raise InputError(
                f"no shortcut is called {shortcut!r}{did_you_mean(shortcut, SHORTCUTS)}; there are None, "
                f"{', '.join(SHORTCUTS)}, or a module"
            )
        if not 0 <= drop_path < 1:
            raise InputError(f"drop_path is a chance from 0 up to but not including 1, not {drop_path}")
        if drop_mode not in DROP_MODES:
            raise InputError(f"drop_mode is one of {', '.join(DROP_MODES)}, not {drop_mode!r}")
        self.body = Chain(*body) if isinstance(body, Sequence) else as_module(body)
        self.open_shortcut = shortcut if isinstance(shortcut, str) else None
        # Registered even where it is not made yet, so that parameters have one order however it is made.
        self.register_module("shortcut", None)
        if shortcut is not None and not isinstance(shortcut, str):
            self.shortcut = as_module(shortcut)
        self.join = make_join(join)
        if drop_path and (self.join in (append, concat, multiply) or isinstance(self.join, Gate)):
            raise InputError(f'drop_path leaves the body out, which the join {join!r} cannot do without; use "add"')
        self.after = None if after is None else as_module(after)
        self.drop_path, self.drop_mode = drop_path, drop_mode
        _refuse_in_place(self)
        _say_shared(self)
        place(self)

    def forward(self, x: Tensor) -> Any:
        """x (B, C, *) -> whatever the join makes of body(x) and shortcut(x)."""
        version = x._version if filling() else 0
        if self.drop_path and self.training and self.open_shortcut is None:
            kept = x if self.shortcut is None else self.shortcut(x)
            branch = thinned(self.body, x, kept, self.drop_path, self.drop_mode, self.where)
        else:
            branch = self.body(x)
            if self.open_shortcut is not None:
                self._fit_shortcut(x, branch)
            kept = x if self.shortcut is None else self.shortcut(x)
        if filling() and x._version != version:
            raise InputError(
                f"{self.where}: the body or the shortcut changes its input in place, which the other side still needs; "
                "use layers that give a new tensor (inplace=False)"
            )
        try:
            out = self.join(branch, kept)
        except ShapeError as error:
            raise error.at(self.where) from None
        return out if self.after is None else self.after(out)

    def _fit_shortcut(self, x: Tensor, branch: Tensor) -> None:
        if not filling():
            raise ShapeError(
                f'{self.where} does not know the sizes of its shortcut "{self.open_shortcut}" yet; '
                "call skipway.output_shape(network, input_shape) once before use"
            )
        assert self.open_shortcut is not None
        try:
            with real_tensors():
                shortcut = fitted_shortcut(self.open_shortcut, tuple(x.shape), tuple(branch.shape))
                if shortcut is not None:
                    shortcut.to(x.device, x.dtype)
        except ShapeError as error:
            raise error.at(self.where) from None
        self.shortcut = shortcut
        self.open_shortcut = None

    def parts(self) -> list[tuple[str, nn.Module | str]]:
        """The body, and whatever else differs from a plain residual connection."""
        shortcut = self.shortcut if self.open_shortcut is None else repr(self.open_shortcut)
        rest = {
            "shortcut": shortcut,
            "join": None if self.join is add else _named(self.join),
            "after": self.after,
            "drop_path": str(self.drop_path) if self.drop_path else None,
            "drop_mode": repr(self.drop_mode) if self.drop_path and self.drop_mode != "row" else None,
        }
        return [("0", self.body), *((name, part) for name, part in rest.items() if part is not None)]

    def __repr__(self) -> str:
        return show(self)


def walk(root: nn.Module) -> Iterator[tuple[str, Skip]]:
    """(path, Skip) of every Skip in `root`, outermost first."""
    yield from ((path, module) for path, module in root.named_modules() if isinstance(module, Skip))


def replace(root: nn.Module, path: str, new: Layer) -> None:
    """Put `new` where `path` ('stage1.0.body') leads in `root`."""
    parent_path, _, name = path.rpartition(".")
    modules = dict(root.named_modules(remove_duplicate=False))
    if not path or path not in modules:
        raise InputError(
            f"there is no module at {path!r}{did_you_mean(path, modules)}; named_modules() lists all paths"
        )
    setattr(modules[parent_path], name, as_module(new))
    place(root)


def as_module(layer: Layer) -> nn.Module:
    """The module itself, or a function as one."""
    if isinstance(layer, nn.Module):
        return layer
    if isinstance(layer, type) or not callable(layer):
        raise InputError(f"a layer is a module or a function of tensors, not {layer!r}; write nn.ReLU() or torch.relu")
    return Function(layer)


def _named(join: Any) -> nn.Module | str:
    return join if isinstance(join, nn.Module) else getattr(join, "__name__", repr(join))


def _refuse_in_place(skip: Skip) -> None:
    """The body and the shortcut are both given x: neither may begin by changing it."""
    for side in (skip.body, skip.shortcut):
        for layer in _first_layers(side):
            name = getattr(getattr(layer, "function", None), "__name__", "")
            if getattr(layer, "inplace", False) is True or (name.endswith("_") and not name.endswith("__")):
                raise InputError(
                    f"{layer!r} at the beginning of a Skip changes in place the input that the Skip still needs; "
                    "use the one that gives a new tensor (inplace=False)"
                )


def _first_layers(layer: nn.Module | None) -> Iterator[nn.Module]:
    if isinstance(layer, nn.Sequential):
        yield from _first_layers(next(layer.children(), None))
    elif isinstance(layer, Parallel):
        for branch in layer.branches:
            yield from _first_layers(branch)
    elif layer is not None:
        yield layer


def _say_shared(container: nn.Module) -> None:
    """Warn where children hold the same layer with parameters: n times one block is one block, not n."""
    seen: dict[int, str] = {}
    shared: dict[str, str] = {}
    for name, child in container._modules.items():  # named_children() leaves out what it has met
        own = {} if child is None else {id(m): name for m in child.modules() if any(True for _ in m.parameters(False))}
        shared.update((name, seen[i]) for i in own if i in seen)
        seen = own | seen
    if shared:
        pairs = ", ".join(f"{name!r} with {first!r}" for name, first in list(shared.items())[:3])
        more = f" and {len(shared) - 3} more" if len(shared) > 3 else ""
        warnings.warn(
            f"layers of this {type(container).__name__} share parameters ({pairs}{more}): they are one layer, counted "
            "once; build each anew for weights of its own",
            stacklevel=3,
        )
