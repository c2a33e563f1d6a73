"""Skip: a body, a shortcut around it, and the join where the two meet.

    out = after(join(body(x), shortcut(x)))

Every residual, dense, highway, gated, scaled or projected connection of this package is one `Skip`. `Parallel` and
`Dense` are here too.

Shapes: B batch, C channels, * any further axes.
Sources: He et al. 2015, arXiv:1512.03385; He et al. 2016, arXiv:1603.05027; stochastic depth, Huang et al. 2016,
arXiv:1603.09382.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

from torch import Tensor, nn

from skipway.errors import InputError, ShapeError, did_you_mean
from skipway.kernels.batchnorm import BATCH_NORM, fusable_norm
from skipway.kernels.layer_dispatch import run_layers
from skipway.nn.chain import Chain, Function, Layer, as_module, warn_shared_layers
from skipway.nn.code_repr import show
from skipway.nn.joins import Gate, add, append, concat, make_join, multiply
from skipway.nn.shape_inference import NamedErrors, filling, named_errors, real_tensors
from skipway.nn.shortcut_types import SHORTCUTS, fitted_shortcut
from skipway.nn.stochastic_depth import DROP_MODES, stochastic_depth

__all__ = ["Dense", "Parallel", "Skip", "set_submodule", "named_skips"]


class Dense(NamedErrors):
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

    @named_errors
    def forward(self, x: Tensor) -> Tensor:
        """(*, in_features) -> (*, out_features)."""
        if isinstance(self.linear, nn.LazyLinear) and not filling():
            raise ShapeError(
                "its in_features are open yet; call skipway.output_shape(network, input_shape) once before use"
            )
        y = self.linear(x)
        return y if self.activation is None else self.activation(y)

    def __repr__(self) -> str:
        lazy = isinstance(self.linear, nn.LazyLinear)
        parts = [str(None if lazy else self.linear.in_features), str(self.linear.out_features)]
        parts += [] if self.activation is None else [repr(self.activation)]
        parts += [] if self.linear.bias is not None else ["bias=False"]
        return f"Dense({', '.join(parts)})"


class Parallel(NamedErrors):
    """`join(branch1(x), branch2(x), ...)`; with as many inputs as branches, each branch takes its own.

    `Parallel(join, body, nn.Identity())` is `Skip(body, join=join)`. The join is called once, with all outputs.
    """

    def __init__(self, join: str | Callable[..., Any], *branches: Layer, **named: Layer):
        super().__init__()
        if not branches and not named:
            raise InputError("Parallel needs at least one branch after its join")
        self.join = make_join(join)
        self.branches = Chain(*branches, **named)

    @named_errors
    def forward(self, *inputs: Tensor) -> Any:
        """One input for all branches, or one for each."""
        if len(inputs) not in (1, len(self.branches)):
            count = len(self.branches)
            raise InputError(f"its {count} branches take 1 or {count} inputs, not {len(inputs)}")
        if len(inputs) == 1:
            inputs *= len(self.branches)
        return self.join(*(branch(x) for branch, x in zip(self.branches, inputs, strict=True)))

    def parts(self) -> list[tuple[str, nn.Module | str]]:
        """The join, then the branches by name."""
        return [("0", _named(self.join)), *self.branches.named_children()]

    def __repr__(self) -> str:
        return show(self)


class Skip(NamedErrors):
    """`after(join(body(x), shortcut(x)))`.

    Args:
        body: a module, or a list of them: to skip k layers is to have a body of k layers.
        shortcut: None (identity), "project" (1x1 convolution or linear layer, then a norm), "pad" (zeros for new
            channels), "pool" (average pool, then project), "auto" (identity where the shapes agree, else project), or
            a module. What a name needs to know of the sizes is filled in by `output_shape`.
        join: "add", "concat", "append" (concat with the input first), "multiply", "gate" (highway), "scale" (one
            learned number, zero at first), "layerscale" (one for each channel), or any callable or module that takes
            (branch, shortcut).
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
        self.after = None if after is None else as_module(after)
        self.drop_path, self.drop_mode = drop_path, drop_mode
        _refuse_unfit(self)
        warn_shared_layers(self)

    @named_errors
    def forward(self, x: Tensor) -> Any:
        """x (B, C, *) -> whatever the join makes of body(x) and shortcut(x)."""
        version, norm = x._version if filling() else 0, None
        if self.drop_path and self.training and self.open_shortcut is None:
            shortcut = x if self.shortcut is None else self.shortcut(x)
            branch = stochastic_depth(self.body, x, shortcut, rate=self.drop_path, mode=self.drop_mode)
        else:
            fusable = self.join is add and self.open_shortcut is None
            norm = fusable_norm(self.body, x, self.after) if fusable else None
            branch = self.body(x) if norm is None else run_layers(list(cast(nn.Sequential, self.body))[:-1], x)
            if self.open_shortcut is not None:
                self._fit_shortcut(x, branch)
            shortcut = x if self.shortcut is None else self.shortcut(x)
        if filling() and x._version != version:
            raise InputError(
                "the body or the shortcut changes its input in place, which the other side still needs; use layers "
                "that give a new tensor (inplace=False)"
            )
        if norm is not None:
            if BATCH_NORM.fits(norm, branch, shortcut, self.after):
                return BATCH_NORM.fast(norm, branch, shortcut, self.after)
            branch = norm(branch)
        out = self.join(branch, shortcut)
        return out if self.after is None else self.after(out)

    def _fit_shortcut(self, x: Tensor, branch: Tensor) -> None:
        if not filling():
            raise ShapeError(
                f'the sizes of its shortcut "{self.open_shortcut}" are open yet; call '
                "skipway.output_shape(network, input_shape) once before use"
            )
        assert self.open_shortcut is not None
        with real_tensors():
            shortcut = fitted_shortcut(self.open_shortcut, tuple(x.shape), tuple(branch.shape))
            if shortcut is not None:
                shortcut.to(x.device, x.dtype)
        self.shortcut = shortcut
        self.open_shortcut = None

    def parts(self) -> list[tuple[str, nn.Module | str]]:
        """The body, and whatever else differs from a plain residual connection."""
        optional = {
            "shortcut": self.shortcut if self.open_shortcut is None else repr(self.open_shortcut),
            "join": None if self.join is add else _named(self.join),
            "after": self.after,
            "drop_path": str(self.drop_path) if self.drop_path else None,
            "drop_mode": repr(self.drop_mode) if self.drop_path and self.drop_mode != "row" else None,
        }
        return [("0", self.body), *((name, part) for name, part in optional.items() if part is not None)]

    def __repr__(self) -> str:
        return show(self)


def named_skips(root: nn.Module) -> Iterator[tuple[str, Skip]]:
    """(path, Skip) of every Skip in `root`, outermost first."""
    yield from ((path, module) for path, module in root.named_modules() if isinstance(module, Skip))


def set_submodule(root: nn.Module, path: str, new: Layer) -> None:
    """Put `new` where `path` ('stage1.0.body') leads in `root`; a Skip's shortcut, join or after may be missing there.

    Raises:
        InputError: nothing stands at that path, or a Skip around it refuses `new`; `root` is as it was.
    """
    parent_path, _, name = path.rpartition(".")
    modules = dict(root.named_modules(remove_duplicate=False))
    parent = modules.get(parent_path, root)
    if not path or (path not in modules and not (isinstance(parent, Skip) and name in ("shortcut", "join", "after"))):
        raise InputError(
            f"there is no module at {path!r}{did_you_mean(path, modules)}; named_modules() lists all paths"
        )
    names = path.split(".")
    around = [(modules[".".join(names[:i])], names[i]) for i in range(len(names))]
    old, layer = getattr(parent, name), as_module(new)
    setattr(parent, name, layer)
    try:
        for skip in (module for module, _ in around if isinstance(module, Skip)):
            _refuse_unfit(skip)
    except InputError:
        if callable(old) and not isinstance(old, nn.Module):
            delattr(parent, name)  # else torch would not put a function where a module is
        setattr(parent, name, old)
        raise
    if isinstance(parent, Skip) and name == "shortcut":
        parent.open_shortcut = None
    for container, child in around:
        warn_shared_layers(container, child)


def _named(join: Any) -> nn.Module | str:
    return join if isinstance(join, nn.Module) else getattr(join, "__name__", repr(join))


def _refuse_unfit(skip: Skip) -> None:
    """The body and the shortcut are both given x: neither may begin by changing it. Not every join can miss a body."""
    for side in (skip.body, skip.shortcut):
        for layer in _first_layers(side):
            name = getattr(getattr(layer, "function", None), "__name__", "")
            if getattr(layer, "inplace", False) is True or (name.endswith("_") and not name.endswith("__")):
                raise InputError(
                    f"{layer!r} at the beginning of a Skip changes in place the input that the Skip still needs; "
                    "use the one that gives a new tensor (inplace=False)"
                )
    join = skip.join.function if isinstance(skip.join, Function) else skip.join
    if skip.drop_path and (join in (append, concat, multiply) or isinstance(join, Gate)):
        raise InputError(f"drop_path leaves the body out, which the join {_named(join)} cannot do without; use add")


def _first_layers(layer: nn.Module | None) -> Iterator[nn.Module]:
    if isinstance(layer, nn.Sequential):
        yield from _first_layers(next(layer.children(), None))
    elif isinstance(layer, Parallel):
        for branch in layer.branches:
            yield from _first_layers(branch)
    elif layer is not None:
        yield layer
