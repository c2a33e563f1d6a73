"""Inputs of predict: images, folders, archives and arrays become one list, in order, before any of them is read."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image
from torch import Tensor

from skipway.data.image_spec import Spec
from skipway.data.sources.archive_tree import is_archive, open_archive
from skipway.data.sources.file_tree import DiskTree, FileTree
from skipway.data.sources.image_folder import describe_content
from skipway.data.sources.in_memory import dataset_images, is_dataset
from skipway.data.sources.other_files import describe_files, is_known, reason_of_kind
from skipway.errors import InputError, printable
from skipway.models.network_outputs import holds_many, prepare_image
from skipway.utils.console import Console
from skipway.utils.devices import available_cores
from skipway.utils.map_ahead import map_ahead

__all__ = ["PredictionInput", "list_inputs", "prepare_ahead", "prepare_input"]

_LEAST_THREADS = 4  # more than cores, because disks over a network have latency


@dataclass(frozen=True)
class PredictionInput:
    """One input of an image model.

    Attributes:
        name: name in messages and tables.
        source: what `prepare_image` reads, or the error that prevents it.
        row: (F + K,) encoded feature columns of the image, or None.
        remark: what is odd in these columns, or "".
    """

    name: str
    source: Any
    row: np.ndarray | None = None
    remark: str = ""


def list_inputs(sources: Any, console: Console, channels: int = 3) -> list[PredictionInput]:
    """List the images of `sources`, in order, and print a remark on the other files of each folder and archive.

    An input that cannot be read is also listed, with its reason, so that every input gets a prediction.

    Args:
        sources: one or several image paths, folders, archives or arrays, or an array of several images.
        console: prints the remarks.
        channels: channels of the model's images, by which an array of one image is distinguished from several.

    Raises:
        InputError: there are no inputs, or the only input is a folder or an archive without images.
    """
    if isinstance(sources, str | os.PathLike | np.ndarray | Tensor | Image):
        sources = [sources]
    elif is_dataset(sources):
        return [PredictionInput(f"image {i}", item) for i, item in enumerate(dataset_images(sources))]
    inputs: list[PredictionInput] = []
    for source in sources:
        if isinstance(source, np.ndarray | Tensor | Image):
            inputs += _object_inputs(source, channels)
        else:
            inputs += _path_inputs(Path(source), console)
    if not inputs:
        raise InputError("cannot predict: expected at least one image or a folder of images, got none. Add a path.")
    if len(inputs) == 1 and isinstance(inputs[0].source, InputError):
        raise inputs[0].source
    return inputs


def prepare_input(image: PredictionInput, spec: Spec, on_note: Callable[[str, str], None]) -> np.ndarray | InputError:
    """Read one input as the pixels (S, S, C) of `spec`, or return the error that prevents it.

    Args:
        image: the input.
        spec: conversion of the image to pixels.
        on_note: called with the name of an image that is nearly black or lacks values, and a note about it.
    """
    if isinstance(image.source, InputError):
        return image.source
    try:
        suffix = os.path.splitext(image.name)[1]
        return prepare_image(image.source, spec, suffix=suffix, on_note=partial(on_note, image.name))
    except InputError as error:
        is_of_other_kind = isinstance(image.source, Path) and image.source.is_file() and is_known(image.name)
        return InputError(f"not an image: {reason_of_kind(image.name)}") if is_of_other_kind else error


def prepare_ahead(
    inputs: Iterable[PredictionInput], spec: Spec, ahead: int, on_note: Callable[[str, str], None]
) -> Iterator[tuple[PredictionInput, np.ndarray | InputError]]:
    """Yield each input with the result of `prepare_input`, in order; threads read and decode ahead of the network.

    Args:
        inputs: the inputs.
        spec: conversion of the images to pixels.
        ahead: number of images that are decoded ahead.
        on_note: called with the name of an image and a note about it, in order.
    """

    def prepare(image: PredictionInput) -> tuple[np.ndarray | InputError, list[tuple[str, str]]]:
        notes: list[tuple[str, str]] = []
        return prepare_input(image, spec, lambda *note: notes.append(note)), notes

    images = list(inputs)
    threads = max(_LEAST_THREADS, available_cores().count)
    results = map_ahead(prepare, images, threads=threads, ahead=ahead)
    for image, (pixels, notes) in zip(images, results, strict=True):
        for note in notes:
            on_note(*note)
        yield image, pixels


def _object_inputs(image: np.ndarray | Tensor | Image, channels: int) -> Iterable[PredictionInput]:
    """List a PIL image, or the images of an array (N, H, W, C) or a tensor of (N, C, H, W) or (N, H, W, C)."""
    if isinstance(image, Image):
        return [PredictionInput("image", image)]
    if isinstance(image, Tensor):
        if image.dim() == 4 and image.shape[1] != channels == image.shape[3]:
            image = image.permute(0, 3, 1, 2)  # channels last, as skipway.train accepts them
        is_one = image.dim() == 2 or (image.dim() == 3 and image.shape[0] == channels)
        return [PredictionInput("tensor", image)] if is_one else _numbered("tensor", image)
    return _numbered("array", image) if holds_many(image, channels) else [PredictionInput("array", image)]


def _numbered(name: str, images: np.ndarray | Tensor) -> list[PredictionInput]:
    return [PredictionInput(f"{name}[{i}]", image) for i, image in enumerate(images)]


def _path_inputs(path: Path, console: Console) -> Iterable[PredictionInput]:
    """List the images of a folder or an archive; if there are none, or it is a file, return one input."""
    try:
        if path.is_dir():
            return _tree_inputs(DiskTree(path), path, console)
        if path.is_file() and is_archive(path):
            return _tree_inputs(open_archive(path), path, console)
    except InputError as error:
        return [PredictionInput(str(path), error)]
    return [PredictionInput(str(path), path)]


def _tree_inputs(tree: FileTree, path: Path, console: Console) -> Iterable[PredictionInput]:
    """List the images of a tree at any depth.

    Raises:
        InputError: there are none, or the tree cannot be listed.
    """
    images, others = tree.root.image_paths(), describe_files(tree.root.other_paths())
    if not images:
        raise InputError(
            f"{tree.where} holds no images{describe_content(tree.root)}. Pass images, or a folder with images."
        )
    remarks = [*tree.warnings, *([f"skipped {others}"] if others else [])]
    if tree.outside:
        remarks.append(f"skipped links to folders outside, first {printable(tree.outside[0])}; pass these folders, too")
    for remark in remarks:
        console.print(f"{tree.where}: {remark}")
    if isinstance(tree, DiskTree):  # single files may be links that lead out of the folder
        return [PredictionInput(str(path / inner), path / inner) for inner in images]
    contents = tree.contents(images)
    return [PredictionInput(f"{path}/{inner}", content) for inner, content in zip(images, contents, strict=True)]
