"""Layer names: which layers of a network are its stages, and where its head starts."""

from skipway.nn.chain import Chain

__all__ = ["head_start", "is_stage", "trunk_end"]

_HEAD = ("pool", "dropout", "head")  # the head starts at the first of these layers that the network has


def is_stage(name: str) -> bool:
    """Return True if a layer of this name is a stage."""
    return name.startswith("stage")


def trunk_end(network: Chain) -> int:
    """Return the number of layers up to the last stage, or up to the stem if there is no stage."""
    end = 0
    for place, name in enumerate(network._modules, 1):
        if name == "stem" or is_stage(name):
            end = place
    return end


def head_start(network: Chain) -> int:
    """Return the number of layers before the head: up to the global pool, or to the classifier if there is none.

    >>> from torch import nn
    >>> head_start(Chain(stem=nn.Conv2d(3, 8, 3), stage1=nn.ReLU(), pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten()))
    2
    """
    names, place = list(network._modules), trunk_end(network)
    while place < len(names) and names[place] not in _HEAD:
        place += 1
    return place
