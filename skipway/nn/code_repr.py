"""Render a tree of layers as the code that builds it, one line per layer, with parameter counts."""

from collections.abc import Iterator

from torch import nn

from skipway.nn.named_errors import NamedErrors
from skipway.utils.format_text import count_of

__all__ = ["show"]

_NORM_DEFAULTS = nn.BatchNorm2d(1).extra_repr().removeprefix("1")


def show(module: nn.Module) -> str:
    """Return the code that builds `module`, one line per layer, with parameter counts as comments.

    >>> print(show(nn.Linear(4, 2)))
    Linear(in_features=4, out_features=2, bias=True)  # 10 parameters
    """
    lines = list(_lines(module, "", "", set()))
    width = max(len(text) for text, _ in lines)
    return "\n".join(f"{text:<{width}}  # {note}" if note else text for text, note in lines)


def _lines(module: nn.Module, indent: str, label: str, seen: set[int]) -> Iterator[tuple[str, str]]:
    comma = "," if indent else ""
    parts = _parts(module)
    if parts is None:
        first, *others = (_short(module) + comma).splitlines()
        note = "shared" if id(module) in seen else _count(module)
        seen.add(id(module) if note else 0)
        yield f"{indent}{label}{first}", note
        yield from ((f"{indent}{line}", "") for line in others)
        return
    if id(module) in seen and _count(module):
        yield f"{indent}{label}{type(module).__name__}(...){comma}", "shared"
        return
    seen.add(id(module))
    inner = indent + "  "
    yield f"{indent}{label}{type(module).__name__}(", ""
    for name, part in parts:
        prefix = "" if name.isdigit() else f"{name}="
        if isinstance(part, nn.Module):
            yield from _lines(part, inner, prefix, seen)
        else:
            yield f"{inner}{prefix}{part},", ""
    tensors = sum(1 for _ in module.parameters())
    total = f"{_count(module) or '0 parameters'} in {count_of(tensors, 'tensor')}" if not indent else ""
    yield f"{indent}){comma}", total


def _parts(module: nn.Module) -> list[tuple[str, nn.Module | str]] | None:
    """Return (name, module or text) of each constructor argument, or None if `repr` shows them."""
    if isinstance(module, NamedErrors) and (parts := module.parts()) is not None:
        return parts
    # named_children() would skip a repeated module
    return list(module._modules.items()) if isinstance(module, nn.Sequential) else None


def _short(module: nn.Module) -> str:
    """Return `repr` without the default arguments of a batch norm."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.extra_repr().endswith(_NORM_DEFAULTS):
        return f"{type(module).__name__}({module.num_features})"
    return repr(module)


def _count(module: nn.Module) -> str:
    parameters = list(module.parameters())
    if any(isinstance(p, nn.UninitializedParameter) for p in parameters):
        return "uninferred sizes"
    count = sum(p.numel() for p in parameters)
    return count_of(count, "parameter") if count else ""
