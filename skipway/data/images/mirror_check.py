"""Whether a mirror image is still of its class: asked of the class names, then of the images themselves.

A network that is trained with horizontal flips cannot tell left from right, and its validation loss on mirrored images
is that on plain ones, so neither its losses nor its accuracies give the fault away. The images do, before training: a
kernel classifier of their thumbnails is validated with and without mirrored copies among what it learns from.
Source of the test: McNemar, Note on the sampling error of the difference between correlated proportions, 1947.
"""

import math
import re
import unicodedata
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from skipway.data.images.decoded_cache import DecodedImages
from skipway.errors import printable

__all__ = ["apply_mirror_problem", "flip_harm", "mirror_problem", "sided_names"]

# (left, right) in English, German and Dutch, French, Spanish, Italian and Portuguese, and turns.
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
_RIDGE = 0.02  # on the diagonal of the kernel, whose entries are at most 1
_HARM = 0.1  # of the accuracy that mirrored copies cost, from which on flips are off
_CHANCE = 1e-3  # probability of such a cost by chance


def mirror_problem(images: DecodedImages) -> str:
    """Return why mirrored training images would be of another class, or nothing if no reason is known."""
    if names := sided_names(images.class_names):
        return names
    harm, chance = flip_harm(images.pixels, images.labels, images.splits["train"])
    if harm < _HARM or chance > _CHANCE:
        return ""
    return f"mirrored copies of the training images cost a simple classifier {harm:.0%} of accuracy"


def apply_mirror_problem(images: DecodedImages, problem: str, augment: str) -> None:
    """Mark `images` as not to be mirrored if there is a `problem`, and add a warning that tells it.

    Args:
        images: the decoded images; their `mirrored` and `warnings` change.
        problem: as `mirror_problem` returns it.
        augment: the level or the parts of the augmentation; parts that name "flip" keep it.
    """
    if not problem:
        return
    images.mirrored = False
    asked = "flip" in augment.split("+")
    remedy = "leave flip out of --augment" if asked else "--augment shift+flip trains with them"
    state = "flips are trained as --augment asks, but" if asked else "flips are off:"
    images.warnings.append(f"{state} {problem}; {remedy}")


def sided_names(class_names: Sequence[str]) -> str:
    """Return in which way class names depend on left and right, or nothing.

    Words are compared, so "turn_left" and "ArrowRight" count, and "copyright" does not. A side counts if its opposite
    is a class too: "right whale" alone is no side.

    >>> sided_names(["turn_left", "turn_right"])
    "the classes 'turn_left' and 'turn_right' name sides"
    """
    words = [_words(name) for name in class_names]
    for left, right in _SIDES:
        found = [next((n for n, w in zip(class_names, words, strict=True) if w & s), None) for s in (left, right)]
        if found[0] is not None and found[1] is not None and found[0] != found[1]:
            return f"the classes {printable(found[0])!r} and {printable(found[1])!r} name sides"
    for name, own in zip(class_names, words, strict=True):
        if own & _MIRRORED:
            return f"the class {printable(name)!r} names a mirror image"
        if own & _ARROWS:
            return f"the class {printable(name)!r} is an arrow"
    return _written_names(words)


def _written_names(words: Sequence[set[str]]) -> str:
    """Return whether the classes are digits or letters, also after a word that all share, such as "digit_3"."""
    shared = set.intersection(*words) if words else set()
    if shared & _ANONYMOUS:
        return ""
    rest = ["".join(own - shared) for own in words]
    if set(rest) == _DIGITS:  # fewer numbers may be names for anything
        return "the classes are digits"
    if len(rest) > 1 and all(len(name) == 1 and name.isalpha() for name in rest):
        return "the classes are letters"
    return ""


def _words(name: str) -> set[str]:
    """Return the words of a class name without case and accents."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))
    split = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", plain)
    return set(re.findall(r"[^\W\d_]+|\d+", split.casefold()))


def flip_harm(pixels: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> tuple[float, float]:
    """Return what mirrored copies in its training set cost a simple classifier, and how probable that is by chance.

    Args:
        pixels: images (N, P, P, C) uint8.
        labels: their classes (N,).
        rows: the images to take; of many, some.

    Returns:
        The accuracy without copies minus the one with them, cross-validated in two folds, and the one-sided
        probability of a sign test over the images on which the two differ.
    """
    order = np.random.Generator(np.random.PCG64(0)).permutation(rows)[:_MOST_IMAGES]
    if len(order) < _FEWEST_IMAGES:
        return 0.0, 1.0
    order.sort()
    order = order[np.argsort(labels[order], kind="stable")]  # so that every second image is a stratified half
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


def _thumbnails(pixels: np.ndarray, rows: np.ndarray) -> Tensor:
    """Return images (N, C, S, S) of small sides, with a mean of 0 and a deviation of 1."""
    parts = []
    for begin in range(0, len(rows), 64):
        part = torch.from_numpy(np.ascontiguousarray(pixels[rows[begin : begin + 64]])).permute(0, 3, 1, 2).float()
        parts.append(F.adaptive_avg_pool2d(part, _SIDE) if part.shape[-1] > _SIDE else part)
    x = torch.cat(parts)
    return (x - x.mean()) / (x.std() + 1e-6)


def _classify(x: Tensor, y: Tensor, inputs: Tensor) -> Tensor:
    """Return the classes of `inputs` by kernel ridge regression on `x` with a Gaussian kernel."""
    x, inputs = x.flatten(1).double(), inputs.flatten(1).double()
    distances = torch.cdist(x, x).square()
    width = distances[distances > 0].median() if (distances > 0).any() else torch.tensor(1.0)
    kernel = torch.exp(-distances / width) + _RIDGE * torch.eye(len(x), dtype=x.dtype)
    targets = F.one_hot(y).double()
    weights = torch.linalg.solve(kernel, targets - targets.mean(0))
    return (torch.exp(-torch.cdist(inputs, x).square() / width) @ weights + targets.mean(0)).argmax(1)


def _sign_test(successes: int, trials: int) -> float:
    """Return the probability of at least so many successes of fair coins."""
    return sum(math.comb(trials, k) for k in range(successes, trials + 1)) / 2**trials
