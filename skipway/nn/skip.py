"""Skip: a body, a shortcut around it, and the join that combines them.

    out = after(join(body(x), shortcut(x)))

Every residual, dense, highway, gated, scaled or projected connection of this package is one `Skip`.

Shapes: B batch, C channels, * any further axes; sequences are (B, T, C) with dim=-1.
Sources: He et al. 2015, arXiv:1512.03385; He et al. 2016, arXiv:1603.05027; stochastic depth, Huang et al. 2016,
arXiv:1603.09382.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, cast

from torch import Tensor, nn

from skipway.errors import InputError, ShapeError, did_you_mean
from skipway.kernels.batchnorm import BATCH_NORM, fusable_norm
from skipway.kernels.layer_dispatch import run_layers
from skipway.nn.chain import Chain, Function, Layer, as_module, warn_shared_layers
from skipway.nn.channel_axis import channel_axis_of, check_dim, resolve_dim
from skipway.nn.code_repr import show
from skipway.nn.extra_inputs import ExtraInputs, taken_inputs, with_extra_inputs
from skipway.nn.in_place import refuse_in_place_change, refuse_in_place_layers, version_of
from skipway.nn.join_errors import have_equal_shapes, need_equal_shapes, need_tensors
from skipway.nn.joins import (
    Gate,
    add,
    append,
    concat,
    make_join,
    multiply,
    name_of_join,
    name_or_module,
    refuse_join_name,
    takes_dim,
)
from skipway.nn.mlp_block import fusable_mlp
from skipway.nn.named_errors import NamedErrors, named_errors
from skipway.nn.shape_inference import filling, real_tensors
from skipway.nn.shortcut_types import check_shortcut, fitted_shortcut
from skipway.nn.stochastic_depth import DROP_MODES, masked_depth, stochastic_depth

__all__ = ["Skip", "set_submodule", "named_skips"]


class Skip(NamedErrors, ExtraInputs):
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
        dim: axis of the channels: 1 for (B, C, *), -1 for sequences (B, T, C). None takes that of the Chain around it,
            or -1 if the body ends in a linear layer or a layer norm, 1 if it ends in a convolution or a batch norm.

    Shapes:
        (B, C, *) -> the shape that the join returns.

    Further inputs, such as a mask, go to the body alone: `Skip(body)(x, mask)` joins body(x, mask) and shortcut(x).

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
        dim: int | None = None,
    ):
        super().__init__()
        if isinstance(shortcut, str):
            check_shortcut(shortcut)
        if not 0 <= drop_path < 1:
            raise InputError(
                f"Skip: expected drop_path of at least 0 and below 1, got {drop_path}. Use 0 to disable "
                "stochastic depth."
            )
        if drop_mode not in DROP_MODES:
            raise InputError(
                f"Skip: expected drop_mode to be {' or '.join(DROP_MODES)}, got {drop_mode!r}. Use one of these."
            )
        self.body = Chain(*body) if isinstance(body, Sequence) and not isinstance(body, str) else as_module(body)
        self.open_shortcut = shortcut if isinstance(shortcut, str) else None
        # Registered even if its sizes are uninferred, so that the order of parameters never changes.
        self.register_module("shortcut", None)
        if shortcut is not None and not isinstance(shortcut, str):
            self.shortcut = as_module(shortcut)
        self.join = make_join(join)
        self.after = None if after is None else as_module(after)
        self.drop_path, self.drop_mode = drop_path, drop_mode
        self.dim = check_dim("Skip", dim)
        _refuse_unfit(self)
        warn_shared_layers(self)

    @named_errors
    @with_extra_inputs
    def forward(self, x: Tensor) -> Any:
        """Return the join of body(x) and shortcut(x), passed through `after`; x has shape (B, C, *)."""
        version, norm = version_of(x), None
        block = fusable_mlp(self.body, x) if self.training and self._only_adds() else None
        if block is not None:
            return block(x)
        if self.drop_path and self.training and self.open_shortcut is None:
            shortcut = x if self.shortcut is None else self.shortcut(x)
            branch = stochastic_depth(self.body, x, shortcut, rate=self.drop_path, mode=self.drop_mode)
            refuse_in_place_change(x, version, "the body or the shortcut")
        else:
            fusable = self.join is add and self.open_shortcut is None
            norm = fusable_norm(self.body, x, self.after) if fusable else None
            branch = self.body(x) if norm is None else run_layers(list(cast(nn.Sequential, self.body))[:-1], x)
            shortcut = self._shortcut_of(x, branch, version)
        if norm is not None:
            if BATCH_NORM.fits(norm, branch, shortcut, self.after):
                return BATCH_NORM.fast(norm, branch, shortcut, self.after)
            branch = norm(branch)
        return self._joined(x, branch, shortcut, version)

    def forward_with(self, x: Any, extra: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        """Compute `forward` with extra inputs of the body."""
        version = version_of(x)
        branch = self.body(x, *extra, **named)
        shortcut = self._shortcut_of(x, branch, version)
        if self.drop_path and self.training:
            branch = masked_depth(branch, shortcut, rate=self.drop_path, mode=self.drop_mode)
        return self._joined(x, branch, shortcut, version)

    def takes(self, count: int, names: Collection[str]) -> tuple[bool, set[str]]:
        """Return True if the body takes `count` positional extra inputs, and the names that it takes."""
        return taken_inputs(self.body, count, names)

    @property
    def channel_axis(self) -> int | None:
        """Axis of the channels of the output, None if neither `dim` nor the body determines it."""
        return channel_axis_of(self.body) if self.dim is None else self.dim

    def _only_adds(self) -> bool:
        """Return True if the output is the sum of the input and the body, in all rows."""
        is_identity = self.shortcut is None and self.open_shortcut is None
        return is_identity and self.join is add and self.after is None and not self.drop_path

    def _shortcut_of(self, x: Any, branch: Any, version: int) -> Any:
        if self.open_shortcut is not None:
            self._fit_shortcut(x, branch)
        layer = self.shortcut
        shortcut = x if layer is None else layer(x)
        refuse_in_place_change(x, version, "the body or the shortcut")
        return shortcut

    def _joined(self, x: Any, branch: Any, shortcut: Any, version: int) -> Any:
        join = _function_of(self.join)
        if join is add or join is multiply:
            if not have_equal_shapes(branch, shortcut):  # the axis of the channels is only for the message
                need_equal_shapes(name_of_join(join), (branch, shortcut), self.channel_axis)
            out = self.join(branch, shortcut)
        elif takes_dim(join):
            need_tensors(name_of_join(join), (branch, shortcut))
            out = join(branch, shortcut, dim=resolve_dim(self.dim, [self.body], branch))
        else:
            out = self.join(branch, shortcut)
            out = out if self.after is None else self.after(out)
            refuse_in_place_change(x, version, "the join or the layer after it")
            return out
        return out if self.after is None else self.after(out)

    def _fit_shortcut(self, x: Tensor, branch: Any) -> None:
        kind = self.open_shortcut
        if not filling():
            raise ShapeError(
                f'the sizes of its shortcut "{kind}" are uninferred. Call '
                "skipway.output_shape(network, input_shape) once before use."
            )
        assert kind is not None
        need_tensors(name_of_join(self.join), (branch, x))
        dim = resolve_dim(self.dim, [self.body], branch) if branch.shape != x.shape or kind == "project" else 1
        with real_tensors():
            shortcut = fitted_shortcut(kind, tuple(x.shape), tuple(branch.shape), dim)
            if shortcut is not None:
                shortcut.to(x.device, x.dtype)
        self.shortcut = shortcut
        self.open_shortcut = None

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, metadata: Any, strict: bool, *lists: list[str]
    ) -> None:
        """Load the state; weights of a shortcut that is not there are unexpected, or cannot be placed."""
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, *lists)
        _, unexpected, errors = lists
        keys = [key for key in state_dict if self.shortcut is None and key.startswith(f"{prefix}shortcut.")]
        if keys and self.open_shortcut is not None:
            errors.append(
                f'cannot load {keys[0]!r}: the sizes of the shortcut "{self.open_shortcut}" are uninferred. Call '
                "skipway.output_shape(network, input_shape) before load_state_dict."
            )
        elif strict:
            unexpected.extend(keys)

    def __setattr__(self, name: str, value: Any) -> None:
        refuse_join_name(name, value)
        super().__setattr__(name, value)
        if name == "shortcut" and isinstance(value, nn.Module):
            self.open_shortcut = None

    def parts(self) -> list[tuple[str, nn.Module | str]]:
        """Return the body, and the parts that differ from a plain residual connection."""
        optional = {
            "shortcut": self.shortcut if self.open_shortcut is None else repr(self.open_shortcut),
            "join": None if self.join is add else name_or_module(self.join),
            "after": self.after,
            "drop_path": str(self.drop_path) if self.drop_path else None,
            "drop_mode": repr(self.drop_mode) if self.drop_path and self.drop_mode != "row" else None,
            "dim": None if self.dim is None else str(self.dim),
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
    for container, child in reversed(around):
        if isinstance(container, Chain):
            container.share_dim()
        warn_shared_layers(container, child)


def _function_of(join: Any) -> Any:
    """Return the function of a join that `set_submodule` wrapped, or the join itself."""
    return join.function if isinstance(join, Function) else join


def _refuse_unfit(skip: Skip) -> None:
    """Reject a body or shortcut that starts in place (both take x), and a drop_path that the join does not support."""
    refuse_in_place_layers("Skip", skip.body, skip.shortcut)
    join = _function_of(skip.join)
    if skip.drop_path and (join in (append, concat, multiply) or isinstance(join, Gate)):
        raise InputError(
            f"cannot use drop_path with the join {name_or_module(join)}, which needs the output of the body. "
            "Use the join `add`, or drop_path=0."
        )
