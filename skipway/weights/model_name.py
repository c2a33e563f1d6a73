"""Model names of timm that also name weights: "resnet18.a1_in1k", "hf-hub:OWNER/NAME" and "local-dir:FOLDER"."""

import os
from dataclasses import dataclass, field
from typing import Any

from skipway.errors import InputError, did_you_mean, printable
from skipway.models import registry
from skipway.weights.factory_options import Pretrained
from skipway.weights.timm_repository import LOCAL, Repository
from skipway.weights.timm_tags import CLASSES, weight_tags

__all__ = ["HUB_PREFIXES", "ModelName", "read_name"]

HUB_PREFIXES = ("hf-hub:", "hf_hub:", "hf:")
_OWNER = "timm/"  # its repositories are named after architecture and tag


@dataclass(frozen=True)
class ModelName:
    """Meaning of a name.

    Attributes:
        architecture: Registered name.
        pretrained: Source of the weights, as for `pretrained_network`; False for none.
        options: Options that belong to the name: the number of classes of its weights, and the arguments in the
            `config.json` of a repository.
    """

    architecture: str
    pretrained: str | os.PathLike[str] | bool
    options: dict[str, Any] = field(default_factory=dict)


def read_name(name: str, pretrained: Pretrained) -> ModelName:
    """Split a name of timm into the architecture and the source of its weights.

    Args:
        name: "resnet18", "resnet18.a1_in1k", "timm/resnet18.a1_in1k", "hf-hub:OWNER/NAME" or "local-dir:FOLDER".
        pretrained: True for the weights of the name. Another source contradicts a name with weights.

    Raises:
        InputError: An argument has another type, the tag or the repository does not exist, or both arguments name
            weights.

    >>> read_name("resnet18.a1_in1k", pretrained=True)
    ModelName(architecture='resnet18', pretrained='a1_in1k', options={})
    """
    if not isinstance(name, str):
        raise InputError(
            f"unknown architecture {printable(repr(name))[:80]}: expected a name, got {type(name).__name__}. "
            "Set pretrained to the path of a file."
        )
    source = False if pretrained is None else pretrained
    if not isinstance(source, str | os.PathLike | bool):
        raise InputError(
            f"pretrained: expected True, False, a tag, a repository or a path, got {printable(repr(source))[:80]}. "
            "Change pretrained."
        )
    hub = next((prefix for prefix in HUB_PREFIXES if name.startswith(prefix)), "")
    address = name.removeprefix(hub)
    if name.startswith(LOCAL) or (hub and not _is_known(address)):
        return _read_repository(name, address, source)
    architecture, _, tag = address.removeprefix(_OWNER).partition(".")
    if "/" in architecture:
        raise InputError(
            f"unknown architecture {printable(name)!r}: expected a name, got a path. Write hf-hub:{printable(name)} "
            f"for the Hub, or {LOCAL}{printable(name)} for a folder."
        )
    if not tag or architecture not in registry.ROWS:
        return ModelName(architecture, source)
    tags = weight_tags(architecture)
    if source is False and tag not in tags:
        raise InputError(
            f"{architecture} has no known weights with the tag {printable(tag)!r}{did_you_mean(tag, tags)}: expected "
            f"one of {', '.join(tags) or 'none'}. Drop the tag, or set pretrained=True to look for it on the Hub."
        )
    classes = {"num_classes": CLASSES[tag]} if tag in CLASSES and source is False else {}
    return ModelName(architecture, _one_source(name, tag, source), classes)


def _is_known(address: str) -> bool:
    """Return True for a repository of timm whose name has a known architecture, so that no file is needed."""
    architecture, _, tag = address.removeprefix(_OWNER).partition(".")
    return address.startswith(_OWNER) and tag in weight_tags(architecture)


def _read_repository(name: str, address: str, source: str | os.PathLike[str] | bool) -> ModelName:
    if not address.removeprefix(LOCAL):
        raise InputError(
            f"cannot read the name {printable(name)!r}: expected a repository or a folder after the colon, got none. "
            "Add it."
        )
    config = Repository(address).config()
    classes = {"num_classes": config.num_classes} if config.num_classes is not None and source is False else {}
    weights = address if address.startswith(LOCAL) else f"{HUB_PREFIXES[0]}{address}"
    return ModelName(config.architecture, _one_source(name, weights, source), {**classes, **config.arguments})


def _one_source(name: str, weights: str, source: str | os.PathLike[str] | bool) -> str | os.PathLike[str] | bool:
    """Return the weights of a name if `source` is True; raise an InputError if it names others."""
    if source in (True, weights):
        return weights
    if source is False:
        return False
    raise InputError(
        f"cannot choose the weights of {printable(name)!r}: expected pretrained=True, got another source, "
        f"{printable(source)!r}. Drop one of them."
    )
