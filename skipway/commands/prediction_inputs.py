"""Inputs of predict: image files, folders and arrays become one list, in order, before any of them is read."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from skipway.data.image_spec import Spec
from skipway.data.sources.file_tree import DiskTree
from skipway.data.sources.image_folder import describe_content
from skipway.data.sources.other_files import describe_files
from skipway.errors import InputError, printable
from skipway.models.network_outputs import prepare_image
from skipway.utils.console import Console

__all__ = ["PredictionInput", "list_inputs", "prepare_input"]


@dataclass(frozen=True)
class PredictionInput:
    """One input of an image model.

    Attributes:
        name: name in messages and tables.
        source: the path or array that `prepare_image` reads, or the error that prevents it.
    """

    name: str
    source: Any


def list_inputs(sources: Any, console: Console) -> list[PredictionInput]:
    """List the images of `sources`, in order, and print the number of skipped files of each folder.

    An input that cannot be read is also listed, with its reason, so that every input gets a prediction.

    Args:
        sources: one or several image paths, folders or uint8 arrays.
        console: prints the remarks.

    Raises:
        InputError: there are no inputs, or all inputs are folders without images.
    """
    if isinstance(sources, str | os.PathLike | np.ndarray):
        sources = [sources]
    inputs: list[PredictionInput] = []
    for source in sources:
        if isinstance(source, np.ndarray):
            inputs.append(PredictionInput("array", source))
            continue
        path = Path(source)
        inputs += _images_of_folder(path, console) if path.is_dir() else [PredictionInput(str(path), path)]
    if not inputs:
        raise InputError("cannot predict: expected at least one image or a folder of images, got none. Add a path.")
    if all(isinstance(image.source, InputError) for image in inputs):
        raise inputs[0].source
    return inputs


def prepare_input(image: PredictionInput, spec: Spec, on_black: Callable[[str], None]) -> np.ndarray | InputError:
    """Read one input as the pixels (S, S, C) of `spec`, or return the error that prevents it.

    Args:
        image: the input.
        spec: conversion of the image to pixels.
        on_black: called with the name of a 16-bit image that is nearly black in 8 bits.
    """
    if isinstance(image.source, InputError):
        return image.source
    try:
        return prepare_image(image.source, spec, on_black=partial(on_black, image.name))
    except InputError as error:
        return error


def _images_of_folder(folder: Path, console: Console) -> list[PredictionInput]:
    """List the images of a folder at any depth; a folder without images is one input, with the reason."""
    root = DiskTree(folder).root
    files, others = root.image_paths(), describe_files(root.other_paths())
    if not files:
        reason = f"{printable(folder)} holds no images{describe_content(root)}. Pass images, or a folder with images."
        return [PredictionInput(str(folder), InputError(reason))]
    if others:
        console.print(f"{printable(folder)}: skipped {others}")
    return [PredictionInput(str(folder / path), folder / path) for path in files]
