"""Repositories of timm models, on the Hugging Face Hub or as a folder: `config.json` and a file of weights."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skipway.data.image_spec import ResizeMode, Spec
from skipway.errors import InputError, printable
from skipway.models import registry
from skipway.weights.hub_download import download

__all__ = ["LOCAL", "OUTPUTS", "Repository", "RepositoryConfig"]

LOCAL = "local-dir:"  # prefix of a folder on this machine, as in timm
OUTPUTS = "skipway"  # key of the fields of OutputSpec in the config.json of an export
_FOLDER_FILES = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")
_RESIZE_MODE_OF: dict[str, ResizeMode] = {"center": "crop", "squash": "squash"}  # by timm's crop_mode


@dataclass(frozen=True)
class RepositoryConfig:
    """The `config.json` of a timm repository.

    Attributes:
        where: Repository, for messages.
        architecture: Name of the model.
        values: All values of the file.
        arguments: Arguments that the model was created with, such as `in_chans`.
    """

    where: str
    architecture: str
    values: dict[str, Any]
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def num_classes(self) -> int | None:
        """Number of classes of the weights, or None if the file has none."""
        settings = self.values.get("pretrained_cfg")
        nested = settings.get("num_classes") if isinstance(settings, dict) else None
        count = self.values.get("num_classes", nested)
        return count if isinstance(count, int) and not isinstance(count, bool) and count >= 0 else None

    def spec(self, plan: dict[str, Any]) -> Spec:
        """Return the preprocessing: shorter side resized to size / crop_pct, rounded down, then a center crop.

        Args:
            plan: Plan of the network; its outputs are the classes of the Spec, which has one class if there are none.

        Raises:
            InputError: A value is missing or invalid.
        """
        try:
            return self._spec(plan)
        except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError) as error:
            raise InputError(
                f"{self.where}: cannot read the preprocessing from config.json ({printable(error)[:200]}). Pass a "
                "repository of a timm model."
            ) from None

    def _spec(self, plan: dict[str, Any]) -> Spec:
        settings = self.values.get("pretrained_cfg") or self.values
        channels, size, other = settings["input_size"]
        if (channels, size) != (plan["in_chans"], other):
            raise ValueError(
                f"input_size {channels} x {size} x {other} is not a square with {plan['in_chans']} channels"
            )
        return Spec(
            channels=channels,
            size=size,
            presize=math.floor(size / float(settings.get("crop_pct") or 1)),
            mean=tuple(map(float, settings["mean"])),
            std=tuple(map(float, settings["std"])),
            **self._outputs(plan["num_classes"], settings),
            resize_mode=_RESIZE_MODE_OF[settings.get("crop_mode") or "center"],
            interpolation=settings.get("interpolation") or "bicubic",
            mirrored=True,  # trained on ImageNet with horizontal flips
        )

    def _outputs(self, num_classes: int, settings: dict[str, Any]) -> dict[str, Any]:
        """Return the fields of OutputSpec: those of a model that skipway exported, or numbered or named classes."""
        fields = self.values.get(OUTPUTS)
        if isinstance(fields, dict):
            return Spec.output_fields(dict(fields))
        names = self.values.get("label_names") or settings.get("label_names")
        count = num_classes or 1  # a Spec without a class is invalid
        if not isinstance(names, list) or len(set(map(str, names))) != count:
            names = list(range(count))
        return {"class_names": tuple(map(str, names))}


@dataclass(frozen=True)
class Repository:
    """A timm repository.

    Args:
        address: Hub repository, such as "timm/resnet18.a1_in1k" or "owner/name@revision", or "local-dir:FOLDER".
    """

    address: str

    @property
    def where(self) -> str:
        """The repository or the folder, for messages."""
        return printable(self.address.removeprefix(LOCAL))

    def config(self, default: str | None = None) -> RepositoryConfig:
        """Read `config.json`.

        Args:
            default: Architecture if the file names none.

        Raises:
            InputError: The file cannot be read, or names an architecture that skipway does not have.
        """
        path = self._file("config.json")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(values, dict):
                raise ValueError("it is not a mapping")
            architecture, arguments = values.get("architecture", default), values.get("model_args") or {}
            if not isinstance(arguments, dict):
                raise ValueError("its model_args are not a mapping")
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(
                f"{self.where}: expected a config.json of timm, got an invalid one ({printable(error)[:100]}). Pass a "
                "repository of a timm model."
            ) from None
        if architecture not in registry.ROWS:
            raise InputError(
                f"{self.where}: expected an architecture of skipway, got {printable(architecture)}. Choose one "
                "from `skipway models`."
            )
        return RepositoryConfig(self.where, architecture, values, arguments)

    def weights(self) -> Path:
        """Return the path of the file of weights, downloaded if it is on the Hub."""
        return self._file(*_FOLDER_FILES)

    def _file(self, *names: str) -> Path:
        """Return the path of the first of these files; on the Hub, there is only the first."""
        if not self.address.startswith(LOCAL):
            return download(self.address, names[0])
        folder = Path(self.address.removeprefix(LOCAL))
        for name in names:
            if (folder / name).is_file():
                return folder / name
        raise InputError(
            f"cannot read {self.where}: expected a folder with {' or '.join(names)}, got none. Pass a folder with "
            "a timm model."
        )
