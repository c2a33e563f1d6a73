"""The warning for optimizers that were made before shape inference created parameters: they would not train them."""

import gc
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn
from torch.optim import Optimizer

__all__ = ["warn_late_parameters"]


@contextmanager
def warn_late_parameters(module: nn.Module) -> Iterator[None]:
    """Warn after the block if it created parameters that an existing optimizer of `module` misses."""
    before = set(module.parameters())  # torch's lazy parameters keep their identity
    try:
        yield
    finally:  # a later layer may have failed: the next run finds these parameters in place
        _warn_if_missed(module, before)


def _warn_if_missed(module: nn.Module, before: set[nn.Parameter]) -> None:
    created = [name for name, parameter in module.named_parameters() if parameter not in before]
    if created and any(_misses(optimizer, before) for optimizer in _optimizers()):
        warnings.warn(
            f"shape inference created {created[0]!r} after the optimizer, which does not train it. Create the "
            "optimizer after output_shape.",
            stacklevel=6,
        )


def _misses(optimizer: Optimizer, before: set[nn.Parameter]) -> bool:
    return any(parameter in before for group in optimizer.param_groups for parameter in group["params"])


def _optimizers() -> Iterable[Optimizer]:
    return (thing for thing in gc.get_objects() if issubclass(type(thing), Optimizer))
