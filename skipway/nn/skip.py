"""Skip: a body, a shortcut around it, and the join that combines them.

    out = after(join(body(x), shortcut(x)))

Every residual, dense, highway, gated, scaled or projected connection of this package is one `Skip`. `Parallel` and
`Dense` are also defined here.

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
    """A linear layer with an optional activation: `activation(x W^T + b)`.

    Args:
        in_features: size of the last axis of the input; None infers it by `output_shape`.
        out_features: size of the last axis of the output.
        activation: module or function applied to the output.
        bias: add a learned bias.

    Shapes:
        (*, in_features) -> (*, out_features).

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
        """Map (*, in_features) to (*, out_features)."""
        if isinstance(self.linear, nn.LazyLinear) and not filling():
            raise ShapeError(
                "its in_features are uninferred. Call skipway.output_shape(network, input_shape) once before use."
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
    """Join the outputs of several branches: `join(branch1(x), branch2(x), ...)`.

    With as many inputs as branches, each branch takes its input. `Parallel(join, body, nn.Identity())` computes the
    same as `Skip(body, join=join)`. The join is called once, with all outputs.

    Args:
        join: name of a join, or a function or module that takes all outputs.
        branches: modules or functions, named by position.
        named: modules or functions with names.

    Raises:
        InputError: there is no branch, or the number of inputs fits neither form.

    >>> import torch
    >>> Parallel("concat", nn.Linear(4, 2), nn.Linear(4, 3))(torch.ones(1, 4)).shape
    torch.Size([1, 5])
    """

    def __init__(self, join: str | Callable[..., Any], *branches: Layer, **named: Layer):
        super().__init__()
        if not branches and not named:
            raise InputError(
                "Parallel: expected at least one branch after the join, got none. Pass modules or functions."
            )
        self.join = make_join(join)
        self.branches = Chain(*branches, **named)

    @named_errors
    def forward(self, *inputs: Tensor) -> Any:
        """Pass one input to all branches, or one input to each, and join the outputs."""
        if len(inputs) not in (1, len(self.branches)):
            count = len(self.branches)
            raise InputError(
                f"expected 1 or {count} inputs for its {count} branches, got {len(inputs)}. Pass one "
                "input for all, or one for each."
            )
        if len(inputs) == 1:
            inputs *= len(self.branches)
        return self.join(*(branch(x) for branch, x in zip(self.branches, inputs, strict=True)))

    def parts(self) -> list[tuple[str, nn.Module | str]]:
        """Return the join, then the branches by name."""
        return [("0", _named(self.join)), *self.branches.named_children()]

    def __repr__(self) -> str:
        return show(self)


class Skip(NamedErrors):
    """A body with a shortcut around it: `after(join(body(x), shortcut(x)))`.

    Args:
        body: a module, or a list of modules; a body of k layers skips k layers.
        shortcut: None (identity), "project" (1x1 convolution or linear layer, then a norm), "pad" (zeros for new
            channels), "pool" (average pool, then projection), "auto" (identity if the shapes agree, else projection),
            or a module. `output_shape` infers the sizes of a named shortcut.
        join: "add", "concat", "append" (concat with the input first), "multiply", "gate" (highway), "scale" (one
            learned scalar, initially zero), "layerscale" (one scalar per channel), or a callable or module that takes
            (branch, shortcut).
        after: layer after the join, such as an activation.
        drop_path: stochastic-depth rate: probability of skipping the body in training. A skipped body is not computed.
            Kept outputs are divided by `1 - drop_path`. Norms in the body see only the kept samples.
        drop_mode: "row" draws for each sample, "batch" draws once for the whole batch.

    Shapes:
        (B, C, *) -> the shape that the join returns.

    Raises:
        InputError: an argument is invalid, or the body or shortcut starts with an in-place layer.
        ShapeError: the inputs of the join do not fit. The message names the path of this Skip, both shapes and a fix.

    >>> import torch
    >>> Skip(nn.Linear(4, 4), after=nn.ReLU())(torch.ones(2, 4)).shape
    torch.Size([2, 4])
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
                f"unknown shortcut {shortcut!r}{did_you_mean(shortcut, SHORTCUTS)}: expected None, "
                f"{', '.join(SHORTCUTS)}, or a module. Use one of these."
            )
        if not 0 <= drop_path < 1:
            raise InputError(
                f"Skip: expected drop_path of at least 0 and below 1, got {drop_path}. Use 0 to disable "
                "stochastic depth."
            )
        if drop_mode not in DROP_MODES:
            raise InputError(
                f"Skip: expected drop_mode to be {' or '.join(DROP_MODES)}, got {drop_mode!r}. Use one of these."
            )
        self.body = Chain(*body) if isinstance(body, Sequence) else as_module(body)
        self.open_shortcut = shortcut if isinstance(shortcut, str) else None
        # Registered even if its sizes are uninferred, so that the order of parameters never changes.
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
        """Return the join of body(x) and shortcut(x), passed through `after`; x has shape (B, C, *)."""
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
                "the body or the shortcut modifies its input in place, but both need it unchanged. Use "
                "layers that return a new tensor (inplace=False)."
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
                f'the sizes of its shortcut "{self.open_shortcut}" are uninferred. Call '
                "skipway.output_shape(network, input_shape) once before use."
            )
        assert self.open_shortcut is not None
        with real_tensors():
            shortcut = fitted_shortcut(self.open_shortcut, tuple(x.shape), tuple(branch.shape))
            if shortcut is not None:
                shortcut.to(x.device, x.dtype)
        self.shortcut = shortcut
        self.open_shortcut = None

    def parts(self) -> list[tuple[str, nn.Module | str]]:
        """Return the body, and the parts that differ from a plain residual connection."""
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
    """Yield the path and the module of every Skip in `root`, outermost first.

    >>> [path for path, _ in named_skips(Chain(Skip(nn.ReLU()), head=nn.Linear(4, 2)))]
    ['0']
    """
    yield from ((path, module) for path, module in root.named_modules() if isinstance(module, Skip))


def set_submodule(root: nn.Module, path: str, new: Layer) -> None:
    """Replace the module at a path, or set a missing shortcut, join or activation of a Skip.

    Args:
        root: module to change.
        path: dotted path in `root`, such as "stage1.0.body".
        new: module or function for that path.

    Raises:
        InputError: there is no module at that path, or a Skip around it rejects `new`. `root` is unchanged then.

    >>> network = Chain(Skip(nn.Linear(4, 4)))
    >>> set_submodule(network, "0.after", nn.ReLU())
    >>> network[0].after
    ReLU()
    """
    parent_path, _, name = path.rpartition(".")
    modules = dict(root.named_modules(remove_duplicate=False))
    parent = modules.get(parent_path, root)
    if not path or (path not in modules and not (isinstance(parent, Skip) and name in ("shortcut", "join", "after"))):
        raise InputError(
            f"cannot set a submodule: expected a path in the module, got {path!r}{did_you_mean(path, modules)}. "
            "List all paths with named_modules()."
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
            delattr(parent, name)  # torch rejects a function in the place of a module
        setattr(parent, name, old)
        raise
    if isinstance(parent, Skip) and name == "shortcut":
        parent.open_shortcut = None
    for container, child in around:
        warn_shared_layers(container, child)


def _named(join: Any) -> nn.Module | str:
    return join if isinstance(join, nn.Module) else getattr(join, "__name__", repr(join))


def _refuse_unfit(skip: Skip) -> None:
    """Reject a body or shortcut that starts in place (both take x), and a drop_path that the join does not support."""
    for side in (skip.body, skip.shortcut):
        for layer in _first_layers(side):
            name = getattr(getattr(layer, "function", None), "__name__", "")
            if getattr(layer, "inplace", False) is True or (name.endswith("_") and not name.endswith("__")):
                raise InputError(
                    f"{layer!r} at the start of a Skip modifies in place the input that the other side needs. Use "
                    "a layer that returns a new tensor (inplace=False)."
                )
    join = skip.join.function if isinstance(skip.join, Function) else skip.join
    if skip.drop_path and (join in (append, concat, multiply) or isinstance(join, Gate)):
        raise InputError(
            f"cannot use drop_path with the join {_named(join)}, which needs the output of the body. "
            "Use the join `add`, or drop_path=0."
        )


def _first_layers(layer: nn.Module | None) -> Iterator[nn.Module]:
    if isinstance(layer, nn.Sequential):
        yield from _first_layers(next(layer.children(), None))
    elif isinstance(layer, Parallel):
        for branch in layer.branches:
            yield from _first_layers(branch)
    elif layer is not None:
        yield layer
