"""Keyword arguments that `create_model` shares with timm and torchvision, apart from the options of the plans."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from skipway.data.output_spec import TASKS, TaskName
from skipway.errors import InputError, printable

__all__ = ["FactoryOptions", "Pretrained"]

Pretrained = str | os.PathLike[str] | bool | None

# Arguments that change nothing here: every network can be exported and traced.
_WITHOUT_EFFECT = ("exportable", "no_jit")


@dataclass(frozen=True)
class FactoryOptions:
    """Arguments of `create_model` about its weights, and the options of the plan.

    Attributes:
        options: Options of the plan.
        pretrained: Source of the weights.
        cache_dir: Cache folder of the Hub, or None for the usual one.
        is_strict: True if the weights must have the requested classes and channels.
        task: Task of the new outputs.
    """

    options: dict[str, Any]
    pretrained: Pretrained
    cache_dir: str | os.PathLike[str] | None = None
    is_strict: bool = False
    task: TaskName = "classification"

    @classmethod
    def split(cls, options: Mapping[str, Any], pretrained: Pretrained) -> "FactoryOptions":
        """Separate the arguments about weights from the options of the plan. An argument that is None has no effect.

        Args:
            options: Keyword arguments of `create_model`.
            pretrained: Its argument `pretrained`.

        Raises:
            InputError: Two arguments name weights, `pretrained_cfg` has other values than a file, or `task` is unknown.

        >>> FactoryOptions.split({"checkpoint_path": "a.pth", "drop_path": 0.1}, pretrained=False).pretrained
        'a.pth'
        """
        plan = dict(options)
        for name in _WITHOUT_EFFECT:
            plan.pop(name, None)
        cache_dir, task = plan.pop("cache_dir", None), plan.pop("task", None) or "classification"
        if task not in TASKS:
            raise InputError(
                f"create_model: expected the task {' or '.join(TASKS)}, got {printable(task)!r}. Correct it."
            )
        source = _configured(plan.pop("pretrained_cfg", None), plan.pop("pretrained_cfg_overlay", None))
        checkpoint = plan.pop("checkpoint_path", None) or None
        sources = {"pretrained_cfg": source if pretrained else None, "checkpoint_path": checkpoint}
        sources = {name: value for name, value in sources.items() if value is not None}
        if len(sources) > 1 or (sources and pretrained not in (None, False, True)) or (checkpoint and pretrained):
            raise InputError(
                f"cannot choose the weights: expected one source, got {' and '.join(sources)} and pretrained="
                f"{printable(pretrained)}. Set only one of them."
            )
        chosen = next(iter(sources.values()), pretrained)
        return cls(plan, chosen, cache_dir, is_strict=checkpoint is not None, task=task)


def _configured(config: Any, overlay: Any) -> str | os.PathLike[str] | None:
    """Return the tag or the file of `pretrained_cfg` and `pretrained_cfg_overlay`."""
    for name, value in (("pretrained_cfg", config), ("pretrained_cfg_overlay", overlay)):
        if isinstance(value, Mapping) and set(value) == {"file"}:
            return value["file"]
        if value and not (name == "pretrained_cfg" and isinstance(value, str)):
            raise InputError(
                f"{name}: expected a tag or {{'file': path}}, got {printable(repr(value))[:80]}. Set pretrained to a "
                "tag or a file, and change the preprocessing in network.spec."
            )
    return config or None
