"""Time plan of a run: the layers to train, the views of each image and the number of epochs that fit a time limit.

A pretrained network is trained in this order. The head comes first and takes seconds. The last stage follows, on
cached outputs of the frozen layers. All layers are trained only if epochs are requested or the network has no stages.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from skipway.distributed import collectives
from skipway.models.network import Network
from skipway.models.network_outputs import count_views
from skipway.runs.datamodule import DataModule
from skipway.runs.head_phase import HeadFit
from skipway.runs.last_layers_plan import LastLayersPlan, plan_last_layers
from skipway.runs.time_budget import FINISH_SECONDS
from skipway.training.pace import epochs_within, measure_pace
from skipway.training.trainer import Settings, Trainer
from skipway.utils.atomic_files import free_bytes, make_folder, storing
from skipway.utils.cache_folder import cache_folder

__all__ = ["DEFAULT_SECONDS", "FEWEST_IMAGES", "last_layers_in_time", "scheduled_epochs"]

# Defaults of a run with pretrained weights and without --epochs or --time-limit: its seconds, and the fewest training
# images for which more than the head is trained. On the 245 of ants_bees no later epoch was better than the head.
DEFAULT_SECONDS = 120.0
FEWEST_IMAGES = 1_000


def last_layers_in_time(
    network: Network, freeze_until: str, settings: Settings, datamodule: DataModule, *, seconds: float, folder: Path
) -> LastLayersPlan | None:
    """Plan the training of the layers after `freeze_until` within a time.

    Args:
        network: network with trained weights and a Spec.
        freeze_until: name of the last frozen layer.
        settings: training settings, for the precision.
        datamodule: prepared data, for the sizes of its splits.
        seconds: time left for the run.
        folder: run folder; the outputs of the frozen layers are cached next to it.

    Returns:
        The plan, or None if time or disk space does not suffice.
    """
    cache = cache_folder("features")
    with storing(cache, 0):
        make_folder(cache)
        max_bytes = free_bytes(cache) // 2
    counts = {split: datamodule.count(split) for split in ("train", "val", "test")}
    seconds -= FINISH_SECONDS
    return plan_last_layers(network, freeze_until, settings.precision, counts, seconds=seconds, max_bytes=max_bytes)


def scheduled_epochs(
    trainer: Trainer,
    train_batches: Any,
    val_batches: Any,
    datamodule: DataModule,
    *,
    head: HeadFit | None,
    seconds_left: Callable[[], float],
) -> tuple[int, float]:
    """Return the number of epochs that fit into the time limit, and the seconds that remain for them.

    Args:
        trainer: trainer before its first step.
        train_batches: training batches.
        val_batches: validation batches.
        datamodule: data of the run, for the sizes of its splits.
        head: fit of the head, which counts as epoch 1, or None.
        seconds_left: function that returns the remaining seconds of the time limit.
    """
    pace = measure_pace(trainer, train_batches, val_batches)
    views = count_views(cast(Network, trainer.network).spec)
    evaluations = views * pace.validation * (1 + datamodule.count("test") / max(datamodule.count("val"), 1))
    left = max(collectives.all_gather(seconds_left() - evaluations - FINISH_SECONDS))
    epochs = epochs_within(left, pace, train_batches.steps, datamodule.size_growth)
    if head is not None:  # the fit of the head is epoch 1
        epochs = 1 + epochs * (pace.seconds(datamodule.size_growth(1)) <= left)
        left += head.seconds
    return epochs, max(left, 0.0)
