"""Plots and images in the folder `plots` of a run; `skipway.report` draws those of the report."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from skipway.data.images.decoded_images import DecodedImages
from skipway.data.images.loader import ImageBatches
from skipway.data.output_spec import OutputSpec
from skipway.data.value_range import viewable
from skipway.report import classification_plots, learning_curves
from skipway.runs.prediction_tables import prediction_cells
from skipway.runs.run_csv_tables import write_table
from skipway.training.scores import Scores
from skipway.utils.atomic_files import make_folder, write_file, write_json
from skipway.utils.run_schema import with_schema

__all__ = ["draw_augmented", "write_range_test", "write_worst_images"]

_NUM_WORST = 16
_NUM_AUGMENTED, _SHEET_COLUMNS = 24, 6  # few columns, so that a phone shows images and captions


def draw_augmented(folder: Path, batches: ImageBatches) -> None:
    """Draw augmented training images of the first epoch, as passed to the network, to plots/augmented.png.

    Args:
        folder: run folder.
        batches: training batches.
    """
    ids = batches.rows[:: max(1, len(batches.rows) // _NUM_AUGMENTED)][:_NUM_AUGMENTED]
    x = (batches.inputs(ids) - batches.offset) / batches.factor
    images = viewable(x.permute(0, 2, 3, 1).round().clamp(0, 255).to(torch.uint8).cpu().numpy())
    make_folder(folder / "plots")
    captions = [batches.images.target_text(i) for i in ids]
    classification_plots.plot_image_grid(
        [_without_gray_axis(i) for i in images], captions, folder / "plots" / "augmented.png", columns=_SHEET_COLUMNS
    )


def write_range_test(folder: Path, values: dict[str, Any]) -> None:
    """Write the values of an LR range test to find_lr.json, and its plot to plots/find_lr.png.

    Args:
        folder: run folder.
        values: result of `RangeTest.as_dict`.
    """
    make_folder(folder / "plots")
    write_json(folder / "find_lr.json", with_schema(values))
    learning_curves.plot_lr_range_test(values, folder / "plots" / "find_lr.png")


def write_worst_images(folder: Path, images: DecodedImages, spec: OutputSpec, scores: Scores) -> None:
    """Write the highest-loss images to plots/worst, and their predictions to plots/worst.csv.

    Args:
        folder: run folder.
        images: decoded images.
        spec: meaning of the outputs.
        scores: predictions for the evaluated images.
    """
    worst = [int(i) for i in np.argsort(-scores.losses, kind="stable")[:_NUM_WORST]]
    make_folder(folder / "plots")
    make_folder(folder / "plots" / "worst")
    for rank, i in enumerate(worst):
        write_file(folder / "plots" / "worst" / f"{rank}.png", _png(images.pixels[scores.ids[i]]))
    columns, cells = prediction_cells(spec, scores)
    write_table(
        folder / "plots" / "worst.csv",
        ("image", "file", *columns),
        ((f"worst/{rank}.png", images.keys[scores.ids[i]], *cells[i]) for rank, i in enumerate(worst)),
    )


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(_without_gray_axis(viewable(pixels))).save(file, "PNG")
    return file.getvalue()


def _without_gray_axis(pixels: np.ndarray) -> np.ndarray:
    """Convert an image (H, W, 1) to (H, W) for Pillow and matplotlib; (H, W, 3) is unchanged."""
    return pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
