"""Print the layers of a network given by name, run folder or weights file."""

from pathlib import Path

from skipway.data.image_spec import Spec
from skipway.errors import InputError
from skipway.model_factory import create_model, input_shape, list_models
from skipway.models.load_model import load
from skipway.probe.summary import Summary, summary

__all__ = ["summarize"]


def summarize(model: str, size: int | None = None, num_classes: int | None = None, code: bool = False) -> Summary | str:
    """Return the table of a network's layers, or its code, for a name, a run folder or a file.

    Raises:
        InputError: there is no such network, or a number is below 1.
    """
    for name, value in (("size", size), ("num_classes", num_classes)):
        if value is not None and value < 1:
            raise InputError(f"{name} must be at least 1, not {value}")
    if model not in list_models() and Path(model).exists():  # a run that is called as a network: ./resnet18
        network = load(model)
        spec = network.spec or network.require_image_spec()
        shape: tuple[int, ...] = (1, *spec.input_shape)
        if isinstance(spec, Spec):
            shape = (1, spec.channels, size or spec.size, size or spec.size)
    else:
        network = create_model(model, num_classes)
        size = size or (32 if network.plan.get("stem") == "small" else 224)
        shape = input_shape(network.plan, size)
    return repr(network) if code else summary(network, shape)
