"""Summarize the layers of an architecture, a run or a weights file."""

from pathlib import Path

from skipway.data.image_spec import Spec
from skipway.errors import InputError
from skipway.model_factory import create_model, input_shape, list_models, row_shapes
from skipway.models.load_model import load
from skipway.probe.summary import Summary, summary

__all__ = ["summarize"]


def summarize(model: str, size: int | None = None, num_classes: int | None = None, code: bool = False) -> Summary | str:
    """Return a table of the layers of a network, or its code.

    Args:
        model: name of an architecture, run folder or weights file.
        size: image size in pixels; the default is that of the run or the architecture.
        num_classes: number of outputs of a named architecture; 0 for no classifier.
        code: return the code of the network instead of the table.

    Raises:
        InputError: there is no such network, or a number is too small.
    """
    for name, value, least in (("size", size, 1), ("num_classes", num_classes, 0)):
        if value is not None and value < least:
            raise InputError(
                f"invalid {name}: expected an integer of at least {least}, got {value}. Pass such a number."
            )
    if model not in list_models() and Path(model).exists():  # names win: write ./resnet18 for a folder of this name
        network = load(model)
        spec = network.spec or network.require_image_spec()
        shape: tuple[int, ...] = (1, *spec.input_shape)
        if isinstance(spec, Spec):
            shape = (1, spec.channels, size or spec.size, size or spec.size)
    else:
        network = create_model(model, num_classes)
        size = size or (32 if network.plan.get("stem") == "small" else 224)
        shape = input_shape(network.plan, size)
    return repr(network) if code else summary(network, shape, **row_shapes(network.plan))
