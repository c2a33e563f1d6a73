"""Diagram: draw a network with its shortcuts as arcs, in one self-contained SVG.

The drawing reads the module tree, so a plan without weights is enough. The stem, each stage and the head get a row, and
each block gets a card. Repeated blocks are drawn twice and then counted.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from torch import nn

from skipway.errors import InputError, did_you_mean, printable
from skipway.model_factory import input_shape as shape_for
from skipway.model_factory import row_shapes
from skipway.models import registry
from skipway.models.architecture_plan import SMALL_STEMS
from skipway.models.network import Network, build_meta_network
from skipway.models.table_layers import Embed
from skipway.nn.blocks import EfficientChannelAttention, SqueezeExcite
from skipway.nn.dense import Dense
from skipway.nn.example_inputs import Example, ExampleInputs
from skipway.nn.joins import Gate
from skipway.nn.parallel import Parallel
from skipway.nn.reversible import Coupling, Reversible
from skipway.nn.shortcut_types import Project
from skipway.nn.skip import Skip
from skipway.probe.call_inputs import Dtypes, calls_of, examples_of, shape_of
from skipway.probe.svg_layout import ROOM, Row, page, tint
from skipway.probe.svg_symbols import around, join_of, kind_of, layer_of, open_sizes, parameter_count, way_of
from skipway.probe.svg_text import GROUND, Card, Chip, Coupled, Frame, Lanes, Piece, Skipped, fit_text, length
from skipway.utils.format_text import count_of

__all__ = ["diagram"]

_IN_ORDER = nn.Sequential, nn.ModuleList, nn.ModuleDict, Dense
_BLOCKS = Skip, Coupling, Parallel
# Modules of several layers, each drawn as a single layer.
_SINGLE_LAYERS = SqueezeExcite, EfficientChannelAttention, Embed, Project, Gate
_MAX_DRAWN = 3  # repeats drawn in full; of more, only two are drawn and the others counted
_MAX_ROWS = 6  # equal containers drawn as rows; more become blocks of one row
_MAX_PERIOD = 4  # longest repeating pattern, in layers


def diagram(
    network: nn.Module | Mapping[str, Any] | str,
    input_shape: Example | None = None,
    *inputs: Example,
    dtypes: Dtypes = None,
    values: Mapping[str, float] | None = None,
    **named: Example,
) -> str:
    """Draw a network, a plan or a named architecture as an SVG.

    Args:
        network: module, plan, or name from `list_models`.
        input_shape: shape of the input with its batch axis, as for `summary`. The default is that of the network's
            Spec or of its plan (224 pixels, or 32 with a small stem). A network without either is drawn without output
            shapes.
        inputs: further inputs of a network that takes several, as for `summary`.
        dtypes: dtype of the inputs, or one for each; None is that of the parameters.
        named: inputs passed by name.
        values: numbers by block path ("stage1.0"), such as the accuracy that dropping the block costs. They tint the
            blocks from white (lowest) to orange (highest). Blocks that are only counted share the tint of their mean.

    Returns:
        The SVG as text.

    Raises:
        InputError: `network` is none of these, a value is not a finite number, or its path is not that of a drawn
            block.
        ShapeError: a layer does not accept its input. The error names the path of the layer.

    Example:
        >>> diagram(nn.Sequential(Skip(nn.Linear(4, 4)), nn.Linear(4, 2)), (1, 4)).startswith("<svg")
        True
    """
    if isinstance(network, str):
        network = registry.plan_of(network)
    if isinstance(network, Mapping):
        network = build_meta_network(dict(network))
    if not isinstance(network, nn.Module):
        raise InputError(
            f"cannot draw a diagram: expected a module, a plan or an architecture name, got {type(network).__name__}. "
            "List the names with `skipway models`."
        )
    first = _default_shape(network) if input_shape is None else input_shape
    if isinstance(network, Network) and input_shape is None and not named:
        named = row_shapes(network.plan)
    examples = None if first is None and not named else examples_of(inputs, named, dtypes, first)
    reader = _Reader(network, examples, values or {})
    rows = list(reader.rows(network, ""))
    reader.check()
    skips = sum(isinstance(m, Skip) + 2 * isinstance(m, Coupling) for m in network.modules())
    facts = [_parameters(network) or "no parameters", count_of(skips, "shortcut")]
    facts += [f"input {_sizes(shape_of(examples))}"] if examples else []
    plan = network.plan if isinstance(network, Network) else {}
    return page(fit_text(plan.get("name") or type(network).__name__, 60), facts, rows, reader.scale)


def _default_shape(network: nn.Module) -> tuple[int, ...] | None:
    if not isinstance(network, Network):
        return None
    if network.spec is not None:
        return 1, *network.spec.input_shape
    if not network.plan:
        return None
    return shape_for(network.plan, 32 if network.plan.get("stem") in SMALL_STEMS else 224)


def _parameters(*modules: nn.Module) -> str:
    """Return the number of parameters in words, or "" for none."""
    if any(map(open_sizes, modules)):
        return "uninferred sizes"
    return _counted(parameter_count(*modules), "parameter")


def _counted(count: int, noun: str) -> str:
    """Return "1 block" or "2 blocks", or "" for none."""
    if count == 0:
        return ""
    return count_of(count, noun)


def _sizes(shape: Any) -> str:
    """Format a shape, or several, without the batch axis."""
    return fit_text(_sizes_text(shape) or "scalar", 40)


def _sizes_text(shape: Any) -> str:
    parts = list(shape.values()) if isinstance(shape, Mapping) else list(shape)
    if all(isinstance(size, int) for size in parts):
        return " × ".join(map(str, parts[1:]))
    return ", ".join(filter(None, map(_sizes_text, parts)))


@dataclass(frozen=True)
class _Unit:
    """Layer or block of a row: its path, its module and the pieces that draw it."""

    path: str
    module: nn.Module
    pieces: tuple[Piece, ...]

    @property
    def block(self) -> bool:
        """True for a block, False for a plain sequence of layers."""
        if not _is_container(self.module):
            return isinstance(self.module, _BLOCKS)
        return not isinstance(self.module, _IN_ORDER) or any(map(_is_block_like, self.module.children()))


def _is_container(module: nn.Module) -> bool:
    """Return True for a module that is drawn as the layers inside it."""
    inside = any(True for _ in module.children()) and not isinstance(module, (*_BLOCKS, *_SINGLE_LAYERS))
    return inside and (isinstance(module, _IN_ORDER) or not type(module).__module__.startswith("torch."))


def _fits_in_line(unit: _Unit) -> bool:
    """Return True for a unit that is drawn among other layers, in a frame if it has one, instead of as a row."""
    if isinstance(unit.module, Dense):
        return True
    own = not isinstance(unit.module, _IN_ORDER) and not any(isinstance(m, _BLOCKS) for m in unit.module.modules())
    return own and length(unit.pieces) < ROOM / 2


def _is_block_like(module: nn.Module) -> bool:
    return isinstance(module, _BLOCKS) or (_is_container(module) and not isinstance(module, Dense))


def _holds_stages(module: nn.Module) -> bool:
    """Return True if a child of `module` holds several blocks."""
    inside = [child for child in module.children() if _is_container(child) and not isinstance(child, Reversible)]
    return any(sum(isinstance(block, _BLOCKS) for block in child.children()) > 1 for child in inside)


class _Reader:
    """Converter from a module tree to rows."""

    def __init__(self, network: nn.Module, examples: ExampleInputs | None, values: Mapping[str, float]):
        called = calls_of(network, examples) if examples else []
        self.shapes = {call.path: call.output for call in called}
        self.places = {call.path: place for place, call in reversed(list(enumerate(called)))}
        self.values = {name: _finite_value(name, value) for name, value in values.items()}
        self.scale = (min(self.values.values()), max(self.values.values())) if values else None
        self.blocks: list[str] = []  # paths of the blocks that can show a value

    def rows(self, module: nn.Module, path: str) -> Iterator[Row]:
        """Yield a row for each child with layers, and one for each run of single layers between them."""
        children = [self._unit(name, child) for name, child in self._children(module, path)]
        alike = Counter(child.pieces for child in children)
        ungrouped: list[_Unit] = []
        for child in children:
            if not _is_container(child.module) or _fits_in_line(child) or alike[child.pieces] > _MAX_ROWS:
                ungrouped.append(child)
                continue
            if ungrouped:
                yield self._row(ungrouped)
                ungrouped = []
            if _holds_stages(child.module):
                yield from self.rows(child.module, child.path)
            else:
                yield self._row(self._units(child.module, child.path), child)
        if ungrouped:
            yield self._row(ungrouped)

    def _row(self, units: list[_Unit], container: _Unit | None = None) -> Row:
        """Build the row of `units`, which are the content of `container` if it is set."""
        self.blocks += [unit.path for unit in units if unit.block]
        first, last = units[0].path or "the network", units[-1].path
        shape = self.shapes.get(container.path if container else last)
        blocks = sum(unit.block for unit in units)
        facts = [kind_of(container.module)] if container and not isinstance(container.module, _IN_ORDER) else []
        facts += [_sizes(shape)] if shape else []
        facts += [_counted(blocks, "block")] if blocks else []
        facts += [count] if (count := _parameters(*(unit.module for unit in units))) else []
        if container and any(isinstance(m, Reversible) for m in container.module.modules()):
            facts.append("reversible")
        if container:
            name = container.path
        else:
            name = first if len(units) == 1 else f"{first} to {last}"
        return Row(fit_text(name, 60), tuple(facts), tuple(self._cards(units)))

    def _cards(self, units: list[_Unit]) -> Iterator[Piece]:
        """Yield the pieces of a row, with each block on a card."""
        for shown, repeats in _fold_repeats(units):
            if repeats:
                yield _chip(repeats, len(shown), *self._value(repeats))
            elif shown[0].block:
                for unit in shown:
                    yield Card(unit.pieces, *self._value([unit]), tip=fit_text(unit.path, 200))
            else:
                for unit in shown:
                    yield from unit.pieces

    def _value(self, units: list[_Unit]) -> tuple[str, str]:
        """Return the tint and the caption for the values of some blocks."""
        paths = [unit.path for unit in units if unit.block]
        numbers = [number for name, number in self.values.items() if any(_is_within(name, path) for path in paths)]
        if not numbers or self.scale is None:
            return GROUND, ""
        low, high = self.scale
        share = (sum(numbers) / len(numbers) - low) / ((high - low) or 1)
        words = f"{min(numbers):.3g}" + (f" to {max(numbers):.3g}" if len(numbers) > 1 else "")
        return tint(share), words

    def check(self) -> None:
        """Check that every value belongs to a drawn block."""
        for name in self.values:
            if not any(_is_within(name, block) for block in self.blocks):
                shown = ", ".join(self.blocks[:3]) + (", ..." if len(self.blocks) > 3 else "")
                raise InputError(
                    f"invalid values: expected paths of drawn blocks ({shown or 'none here'}), got "
                    f"{printable(name)!r}{did_you_mean(name, self.blocks)}. Pass the path of a block."
                )

    def _children(self, module: nn.Module, path: str) -> list[tuple[str, nn.Module]]:
        """Return (path, layer) of the children, in call order if known."""
        if not _is_container(module):
            return [(path, module)]
        inside = [(f"{path}.{name}".lstrip("."), child) for name, child in module._modules.items() if child is not None]
        if isinstance(module, _IN_ORDER):
            return inside

        def first_call(child: tuple[str, nn.Module]) -> float:
            return min((place for at, place in self.places.items() if _is_within(at, child[0])), default=math.inf)

        return sorted(inside, key=first_call)

    def _units(self, module: nn.Module, path: str) -> list[_Unit]:
        """Return the child layers as units, with the children of a Reversible in its place."""
        units = []
        for name, child in self._children(module, path):
            units += self._units(child, name) if isinstance(child, Reversible) else [self._unit(name, child)]
        return units

    def _unit(self, path: str, module: nn.Module) -> _Unit:
        return _Unit(path, module, self._pieces(module, path))

    def _pieces(self, module: nn.Module | None, path: str) -> tuple[Piece, ...]:
        """Return the pieces that draw a layer or the layers inside it."""
        if module is None:
            return ()
        if isinstance(module, Skip):
            body, after = self._pieces(module.body, f"{path}.body"), self._pieces(module.after, f"{path}.after")
            drop = f", drop path {module.drop_path:g}" if module.drop_path else ""
            return (Skipped(body, way_of(module), join_of(module.join), after, fit_text(f"{path}: Skip{drop}", 200)),)
        if isinstance(module, Parallel):
            inside = self._children(module.branches, f"{path}.branches")
            branches = tuple(() if isinstance(b, nn.Identity) else self._pieces(b, name) for name, b in inside)
            return (Lanes(branches, join_of(module.join), fit_text(f"{path}: Parallel", 200)),)
        if isinstance(module, Coupling):
            ways = [around(shortcut) for shortcut in module.shortcuts or (None, None)]
            f, g = self._pieces(module.f, f"{path}.f"), self._pieces(module.g, f"{path}.g")
            return (Coupled(f, g, (ways[0], ways[1]), fit_text(f"{path}: Coupling", 200)),)
        if not _is_container(module):
            return (layer_of(module, self._tip(module, path)),)
        pieces: list[Piece] = []
        for shown, repeats in _fold_repeats(self._units(module, path)):
            pieces += [_chip(repeats, len(shown))] if repeats else chain.from_iterable(unit.pieces for unit in shown)
        return tuple(pieces) if isinstance(module, _IN_ORDER) else (Frame(kind_of(module), tuple(pieces)),)

    def _tip(self, module: nn.Module, path: str) -> str:
        count, shape = _parameters(module), self.shapes.get(path)
        facts = [f"{path or 'the network'}: {type(module).__name__}({module.extra_repr()})"]
        facts += [count] if count else []
        return fit_text(", ".join(facts + ([f"output {_sizes_text(shape)}"] if shape else [])), 300)


def _finite_value(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        shown = printable(repr(value))
        raise InputError(f"invalid values: expected a finite number for the block {printable(name)!r}, got {shown}")
    return number


def _is_within(path: str, outer: str) -> bool:
    return path == outer or path.startswith(f"{outer}.")


def _fold_repeats(units: list[_Unit]) -> Iterator[tuple[list[_Unit], list[_Unit]]]:
    """Yield (units to draw, []), or (pattern, units that only repeat it and are counted)."""
    appearances = [unit.pieces for unit in units]
    at = 0
    while at < len(units):
        for period in range(1, _MAX_PERIOD + 1):
            end = at + period
            while appearances[end : end + period] == appearances[at : at + period]:
                end += period
            if end - at > _MAX_DRAWN * period:
                begin = at + (_MAX_DRAWN - 1) * period
                for unit in units[at:begin]:
                    yield [unit], []
                yield units[at : at + period], units[begin:end]
                at = end
                break
        else:
            yield [units[at]], []
            at += 1


def _chip(repeats: list[_Unit], period: int, ground: str = GROUND, caption: str = "") -> Chip:
    count = len(repeats) // period
    if period > 1:
        words = [f"+ {count} ×", f"these {period}"]
    else:
        same = len({parameter_count(unit.module) for unit in repeats}) == 1
        words = [f"+ {count}", f"{'equal' if same else 'similar'} {'blocks' if repeats[0].block else 'layers'}"]
    tip = fit_text(f"{repeats[0].path} to {repeats[-1].path}", 200)
    return Chip(tuple(words + ([caption] if caption else [])), ground, tip)
