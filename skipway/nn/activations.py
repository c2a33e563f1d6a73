"""Activations by name, with the names of timm.

Source of the table: the classes of torch.nn.
"""

from torch import nn

from skipway.errors import InputError, did_you_mean

__all__ = ["ACTIVATIONS", "make_activation"]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "celu": nn.CELU,
    "selu": nn.SELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "gelu": nn.GELU,
    "hardswish": nn.Hardswish,
    "hardsigmoid": nn.Hardsigmoid,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "identity": nn.Identity,
}
_IN_PLACE = ("relu", "relu6", "leaky_relu")  # the gradients of others need their input, so nothing would be saved


def make_activation(name: str, inplace: bool = True) -> nn.Module:
    """Build the activation of a name.

    Args:
        name: a key of `ACTIVATIONS`.
        inplace: allow the layer to overwrite its input, if that saves memory.

    Raises:
        InputError: the name is unknown.

    >>> make_activation("silu")
    SiLU()
    """
    if name not in ACTIVATIONS:
        raise InputError(
            f"unknown activation {name!r}{did_you_mean(name, ACTIVATIONS)}: expected one of "
            f"{', '.join(ACTIVATIONS)}. Use one of these."
        )
    return ACTIVATIONS[name](inplace=inplace) if name in _IN_PLACE else ACTIVATIONS[name]()
