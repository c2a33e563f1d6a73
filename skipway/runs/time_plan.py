"""What a run does in the time that it has: which layers it trains, on how many views, for how many epochs.

The weights' own layers are trained in this order: the head, which takes seconds; the last stage on outputs of the
frozen layers; all layers, if epochs are asked for or the network has no stages.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from skipway.distributed import collectives
from skipway.models.network import Network
from skipway.runs.datamodule import DataModule
from skipway.runs.feature_cache import cache_folder
from skipway.runs.head_phase import HeadFit
from skipway.runs.last_layers_plan import LastLayersPlan, plan_last_layers
from skipway.runs.time_budget import FINISH_SECONDS
from skipway.training.pace import epochs_within, measure_pace
from skipway.training.trainer import Settings, Trainer
from skipway.utils.atomic_files import free_bytes, make_folder, storing

__all__ = ["DEFAULT_SECONDS", "FEWEST_IMAGES", "last_layers_in_time", "scheduled_epochs"]

# Of a run with pretrained weights and without --epochs or --time-limit: seconds, and training images from which on more
# than the head is trained. On the 245 of ants_bees no later epoch was better than the head.
DEFAULT_SECONDS = 120.0
FEWEST_IMAGES = 1_000


def last_layers_in_time(
    network: Network, freeze_until: str, settings: Settings, datamodule: DataModule, *, seconds: float, folder: Path
) -> LastLayersPlan | None:
    """Return how the layers after `freeze_until` are trained, or None if time or disk leave no room for it.

    Args:
        network, settings, datamodule, folder: those of the run.
        freeze_until: the last layer that stays as it is.
        seconds: that are left.
    """
    cache = cache_folder(folder)
    with storing(cache, 0):
        make_folder(cache)
        room = free_bytes(cache) // 2
    counts = {split: datamodule.count(split) for split in ("train", "val", "test")}
    seconds -= FINISH_SECONDS
    return plan_last_layers(network, freeze_until, settings.precision, counts, seconds=seconds, room=room)


def scheduled_epochs(
    trainer: Trainer,
    train_batches: Any,
    val_batches: Any,
    datamodule: DataModule,
    *,
    head: HeadFit | None,
    seconds_left: Callable[[], float],
) -> tuple[int, float]:
    """Return the epochs of all layers that fit into the time, with that of the head, and the seconds for them.

    Args:
        trainer: of the first step.
        train_batches, val_batches, datamodule: of the run.
        head: the head's fit, which was epoch 1, or None.
        seconds_left: returns what is left of the time limit.
    """
    pace = measure_pace(trainer, train_batches, val_batches)
    evaluations = pace.validation * (1 + datamodule.count("test") / max(datamodule.count("val"), 1))
    left = max(collectives.all_gather(seconds_left() - evaluations - FINISH_SECONDS))
    epochs = epochs_within(left, pace, train_batches.steps, datamodule.size_growth)
    if head is not None:  # its epoch comes before these
        epochs = 1 + epochs * (pace.seconds(datamodule.size_growth(1)) <= left)
        left += head.seconds
    return epochs, max(left, 0.0)
