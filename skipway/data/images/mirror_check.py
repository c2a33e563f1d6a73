"""Detection of datasets whose classes change under a horizontal flip, from the class names and the images.

A model trained with flips cannot distinguish left from right, and its training curves do not show it. This check runs
before training. It cross-validates a kernel classifier of thumbnails with and without flipped training images.

Source: McNemar, Note on the sampling error of the difference between correlated proportions, 1947.
"""

import math
import re
import unicodedata
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from skipway.data.images.decoded_images import DecodedImages
from skipway.data.images.stored_pixels import Pixels
from skipway.data.value_range import levels_of
from skipway.errors import printable

__all__ = ["apply_mirror_problem", "flip_harm", "mirror_problem", "sided_names"]

# (left, right) in English, German and Dutch, French, Spanish, Italian, Portuguese; directions of rotation; letters.
_SIDES = (
    ({"left", "lefthand", "leftward", "leftwards", "lh"}, {"right", "righthand", "rightward", "rightwards", "rh"}),
    ({"links", "linke", "linker", "linkes"}, {"rechts", "rechte", "rechter", "rechtes"}),
    ({"gauche"}, {"droite", "droit"}),
    ({"izquierda", "izquierdo", "izq"}, {"derecha", "derecho", "der"}),
    ({"sinistra", "sinistro"}, {"destra", "destro"}),
    ({"esquerda", "esquerdo"}, {"direita", "direito"}),
    ({"clockwise", "cw"}, {"counterclockwise", "anticlockwise", "ccw"}),
    ({"b"}, {"d"}),
    ({"p"}, {"q"}),
)
_ARROWS = {"arrow", "arrows", "pfeil", "pfeile", "fleche", "fleches", "flecha", "flechas"}
_MIRRORED = {"mirrored", "flipped", "gespiegelt", "reflejado", "reflejada", "inverse", "inversee", "unmirrored"}
_ANONYMOUS = {"class", "klasse", "classe", "clase", "label", "category", "cat", "type", "group"}
_DIGITS = set("0123456789")

_SIDE = 16  # pixels of a thumbnail
_MOST_IMAGES, _FEWEST_IMAGES = 1000, 16
_RIDGE = 0.02  # added to the diagonal of the kernel matrix, whose entries are at most 1
_HARM = 0.1  # drop in accuracy from which flips are disabled
_CHANCE = 1e-3  # maximum p-value of that drop


def mirror_problem(images: DecodedImages) -> str:
    """Return the reason not to flip the training images, or "" if flips seem harmless."""
    if names := sided_names(images.class_names):
        return names
    if images.task != "classification":
        return ""
    harm, chance = flip_harm(images.pixels, images.targets, images.splits["train"])
    if harm < _HARM or chance > _CHANCE:
        return ""
    return f"flipped training images lower the accuracy of a simple classifier by {harm:.0%}"


def apply_mirror_problem(images: DecodedImages, problem: str, augment: str) -> None:
    """Disable flips for `images` and add a warning, if there is a problem.

    Args:
        images: decoded images; `mirrored` and `warnings` are updated.
        problem: the reason, as `mirror_problem` returns it; "" for none.
        augment: level or operations of the augmentation; an explicit "flip" stays enabled.
    """
    if not problem:
        return
    images.mirrored = False
    if "flip" in augment.split("+"):
        warning = f"flips may hurt: {problem}. Remove flip from --augment."
    else:
        warning = f"flips are disabled: {problem}. To enable them, use --augment shift+flip."
    images.warnings.append(warning)


def sided_names(class_names: Sequence[str]) -> str:
    """Return a reason if class names depend on left and right, or "" if they do not.

    Whole words are compared, so "turn_left" and "ArrowRight" match, and "copyright" does not. A side only counts if
    its opposite is also a class, so "right whale" alone does not match.

    >>> sided_names(["turn_left", "turn_right"])
    "the classes 'turn_left' and 'turn_right' are mirror images of each other"
    """
    words = [_words(name) for name in class_names]
    for left, right in _SIDES:
        pair = [next((n for n, w in zip(class_names, words, strict=True) if w & s), None) for s in (left, right)]
        if pair[0] is not None and pair[1] is not None and pair[0] != pair[1]:
            names = f"{printable(pair[0])!r} and {printable(pair[1])!r}"
            return f"the classes {names} are mirror images of each other"
    for name, name_words in zip(class_names, words, strict=True):
        if name_words & _MIRRORED:
            return f"the class {printable(name)!r} is a mirror image"
        if name_words & _ARROWS:
            return f"the class {printable(name)!r} is an arrow"
    return _written_names(words)


def _written_names(words: Sequence[set[str]]) -> str:
    """Return a reason if the classes are digits or letters, also after a shared word such as in "digit_3"."""
    shared = set.intersection(*words) if words else set()
    if shared & _ANONYMOUS:
        return ""
    rest = ["".join(name_words - shared) for name_words in words]
    if set(rest) == _DIGITS:  # a subset of the digits may be arbitrary numbering
        return "the classes are digits"
    if len(rest) > 1 and all(len(name) == 1 and name.isalpha() for name in rest):
        return "the classes are letters"
    return ""


def _words(name: str) -> set[str]:
    """Return the words of a class name, without case and accents."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))
    split = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", plain)
    return set(re.findall(r"[^\W\d_]+|\d+", split.casefold()))


def flip_harm(pixels: Pixels, labels: np.ndarray, rows: np.ndarray) -> tuple[float, float]:
    """Measure the accuracy that a simple classifier loses if flipped images are added to its training set.

    Args:
        pixels: (N, P, P, C) uint8 or uint16.
        labels: (N,) class indices.
        rows: indices of the images to use; at most 1,000 of them are sampled.

    Returns:
        Accuracy without flipped images minus accuracy with them, by 2-fold cross-validation, and the one-sided
        p-value of a sign test on the images for which the two classifiers differ. (0, 1) for fewer than 16 images.
    """
    order = np.random.Generator(np.random.PCG64(0)).permutation(rows)[:_MOST_IMAGES]
    if len(order) < _FEWEST_IMAGES:
        return 0.0, 1.0
    order.sort()
    order = order[np.argsort(labels[order], kind="stable")]  # every second image is then a stratified half
    thumbnails = _thumbnails(pixels, order)
    classes = torch.from_numpy(np.unique(labels[order], return_inverse=True)[1])
    better = worse = 0
    for fold in (0, 1):
        held = torch.arange(len(order)) % 2 == fold
        x, y, mirrored = thumbnails[~held], classes[~held], thumbnails[~held].flip(-1)
        plain = _classify(x, y, thumbnails[held]) == classes[held]
        flipped = _classify(torch.cat([x, mirrored]), torch.cat([y, y]), thumbnails[held]) == classes[held]
        better, worse = better + int((plain & ~flipped).sum()), worse + int((flipped & ~plain).sum())
    return (better - worse) / len(order), _sign_test(better, better + worse)


def _thumbnails(pixels: Pixels, rows: np.ndarray) -> Tensor:
    """Return standardized thumbnails (N, C, S, S)."""
    parts = []
    for begin in range(0, len(rows), 64):
        part = torch.from_numpy(levels_of(pixels[rows[begin : begin + 64]])).permute(0, 3, 1, 2).float()
        parts.append(F.adaptive_avg_pool2d(part, _SIDE) if part.shape[-1] > _SIDE else part)
    x = torch.cat(parts)
    return (x - x.mean()) / (x.std() + 1e-6)


def _classify(x: Tensor, y: Tensor, inputs: Tensor) -> Tensor:
    """Predict the classes of `inputs` by kernel ridge regression on (x, y) with a Gaussian kernel."""
    x, inputs = x.flatten(1).double(), inputs.flatten(1).double()
    distances = torch.cdist(x, x).square()
    width = distances[distances > 0].median() if (distances > 0).any() else torch.tensor(1.0)
    kernel = torch.exp(-distances / width) + _RIDGE * torch.eye(len(x), dtype=x.dtype)
    targets = F.one_hot(y).double()
    weights = torch.linalg.solve(kernel, targets - targets.mean(0))
    return (torch.exp(-torch.cdist(inputs, x).square() / width) @ weights + targets.mean(0)).argmax(1)


def _sign_test(successes: int, trials: int) -> float:
    """Return the probability of at least this many successes in fair coin tosses."""
    return sum(math.comb(trials, k) for k in range(successes, trials + 1)) / 2**trials
