"""Pictures to learn from, as a run needs them: feeds, Spec, network, fingerprint, what is written and said of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from skipway.data.batching import Shard
from skipway.data.image_spec import Spec
from skipway.data.images import augment_policy
from skipway.data.images.decoded_cache import choose_decode_settings, decode_images, fingerprint
from skipway.data.images.loader import Augmentation, ImageBatches, mean_and_std
from skipway.data.images.split import describe, hold_out, refuse_leaks
from skipway.data.sources.choose_source import open_source
from skipway.distributed import collectives
from skipway.errors import InputError, printable
from skipway.models.network import Network
from skipway.models.resnet9 import whiten
from skipway.runs.defaults import batch_size_for
from skipway.runs.initial_network import beginning, chosen_model
from skipway.runs.recipe import Recipe
from skipway.runs.resume import changed_data, old_splits
from skipway.runs.run_folder import draw_augmented, write_data, write_judgement
from skipway.training.losses import Classification, Task
from skipway.training.metrics import ClassScores, Scores
from skipway.training.trainer import Settings
from skipway.utils.console import Console
from skipway.utils.signals import StopFlag
from skipway.utils.text import join_names

__all__ = ["ImageDataModule"]

_WHITENED = 5000  # training pictures that a whitening stem is fitted to


class ImageDataModule:
    """One run's pictures: `Job` says what each part is for."""

    noun = "pictures"

    def __init__(self, recipe: Recipe, new: bool, transform: Callable[[Tensor], Tensor] | None = None):
        assert recipe.data is not None
        if transform is not None and not callable(transform):
            raise InputError(
                f"a transform takes pictures (B, C, H, W) and gives as many, but {transform!r} takes nothing"
            )
        self.recipe, self.transform = recipe, transform
        self.source = open_source(recipe.data, recipe.follow_links, recipe.allow_empty_classes)
        self.packing = choose_decode_settings(self.source, _sizes(recipe)[1], recipe.resize_mode, recipe.max_pixels)
        count = self.source.count("train")
        self.model = chosen_model(recipe, self.packing.size, count) if new else ("", {})
        self.name, self.epochs = self.source.name, recipe.epochs

    def prepare(self, console: Console, stop: StopFlag) -> None:
        """Decode every picture, refuse copies across splits, hold a part of the training pictures out."""
        self.packed = decode_images(self.source, self.packing, self.recipe.max_unreadable, console, stop)
        refuse_leaks(self.packed, self.recipe.allow_duplicates)
        hold_out(self.packed, self.recipe.val_fraction, self.recipe.seed)
        self.fingerprint = fingerprint(self.packed)

    def usual_batch(self) -> int:
        """Pictures in a step."""
        return batch_size_for(self.recipe, self.count("train"))

    def count(self, split: str) -> int:
        """How many pictures a split has."""
        return len(self.packed.splits.get(split, ()))

    def name_of(self, picture: int) -> str:
        """What the user knows a picture by."""
        return self.packed.keys[picture]

    def class_counts(self) -> list[int]:
        """Training pictures of each class."""
        labels = self.packed.labels[self.packed.splits["train"]]
        return np.bincount(labels, minlength=len(self.packed.class_names)).tolist()

    def spec(self, earlier: dict[str, Any] | None) -> Spec:
        """How pictures become inputs: as the run that goes on has it, or by the training pictures."""
        packed, packing = self.packed, self.packing
        if earlier is not None:
            spec = Spec.from_dict(earlier)
            if spec.class_names != packed.class_names:
                known = join_names(map(printable, spec.class_names), limit=8)
                raise InputError(
                    f"the run knows the classes {known}, but the data has "
                    f"{join_names(map(printable, packed.class_names), limit=8)}; start a new run for other classes"
                )
            return spec
        mean, std = mean_and_std(packed.pixels, packed.splits["train"])
        preparation = (packing.resize_mode, packing.interpolation, packed.mirrored)
        return Spec(packing.channels, packing.size, packing.stored_size, mean, std, packed.class_names, *preparation)

    def network(self, console: Console) -> tuple[Network, bool]:
        """What a new run begins with, and whether it was trained already."""
        return beginning(self.recipe, self.model, self.spec(None), console)

    def setup(self, network: Network, batch_size: int, device: str, earlier: dict[str, Any] | None) -> None:
        """What the feeds are made with from here on."""
        spec, packed, packing = network.require_image_spec(), self.packed, self.packing
        self.batch_size, self.device, self.mean, self.std = batch_size, device, spec.mean, spec.std
        chosen = augment_policy.resolve_policy(
            self.recipe.augment, stored_size=packing.stored_size, size=packing.size, mirrored=packed.mirrored
        )
        self.level: str = chosen if earlier is None else earlier["level"]
        now = _name(self.transform)
        before = now if earlier is None else earlier.get("transform", "")
        if before != now:
            raise InputError(
                f"a run goes on as it began: its transform was {printable(before) or 'none'}, not {now or 'none'}; "
                "give skipway.train the same one beside resume"
            )
        if isinstance(self.transform, nn.Module):
            self.transform.to(device)

    def feed(self, split: str, *, train: bool = False) -> ImageBatches:
        """The pictures of a split in batches; those to train on shuffled and changed."""
        size, change = (self.batch_size, self._change()) if train else (2 * self.batch_size, None)
        return ImageBatches(
            self.packed,
            self.packed.splits[split],
            size,
            mean=self.mean,
            std=self.std,
            augmentation=change,
            device=self.device,
            shard=Shard(collectives.rank(), collectives.world_size()),
        )

    def _change(self) -> Augmentation:
        recipe = self.recipe
        return Augmentation(
            self.level,
            recipe.seed,
            recipe.mixup,
            recipe.cutmix,
            _sizes(recipe)[0] or 0,
            recipe.epochs,
            recipe.balance == "sampling",
            self.transform,
        )

    def fit_first_layer(self, network: Network, feed: ImageBatches) -> None:
        """A whitening stem undoes the correlations of the training pictures."""
        whiten(network, feed.some(_WHITENED)[0])

    def task(self, settings: Settings) -> Task:
        """Pictures are classified."""
        return Classification(settings.label_smoothing, settings.class_weights)

    def changed(self, folder: Path) -> str:
        """What differs from the pictures that the run of `folder` had, in one line."""
        return changed_data(old_splits(folder), self.packed)

    def describe(self) -> dict[str, Any]:
        """What metrics.json has under "data"."""
        return describe(self.packed)

    def lines(self) -> list[str]:
        """What is said of the data before training."""
        packed = self.packed
        counts = ", ".join(f"{len(i):,} {split}" for split, i in packed.splits.items())
        said = [f"data: {packed.name}, {len(packed.class_names)} classes, {counts} pictures, {packed.sizes}"]
        if packed.skipped:
            said.append(f"  {len(packed.skipped):,} pictures could not be read and are left out: see skipped.csv")
        said += [f"  {count:,} {note}" for note, count in packed.notes.most_common()]
        return said + [f"  mind: {warning}" for warning in describe(packed)["warnings"]]

    def write_data(self, folder: Path, feed: ImageBatches) -> None:
        """splits.csv, skipped.csv and a sheet of training pictures as the network sees them."""
        write_data(folder, self.packed)
        draw_augmented(folder, feed)

    def write_judgement(self, folder: Path, scores: Scores, split: str) -> None:
        """The tables of classes and predictions, and the worst pictures."""
        assert isinstance(scores, ClassScores)
        write_judgement(folder, self.packed, scores, split)

    def augmentation(self) -> str:
        """What is done to training pictures, in words."""
        said = [augment_policy.describe_policy(self.level, self.packing.size)]
        first, full = _sizes(self.recipe)
        said += [f"from {first} to {full} px"] if first else []
        said += [f"{name} {amount:g}" for name in ("mixup", "cutmix") if (amount := getattr(self.recipe, name))]
        said += [_name(self.transform)] if self.transform is not None else []
        return ", ".join(said)

    def facts(self) -> dict[str, Any]:
        """What a checkpoint keeps of how pictures are changed."""
        return {"level": self.level, "transform": _name(self.transform)}

    def extra_metrics(self) -> dict[str, Any]:
        """What else metrics.json has."""
        return {}


def _name(transform: Callable[[Tensor], Tensor] | None) -> str:
    """What a transform is known by: a module by all of its settings, a function by its name."""
    if transform is None or isinstance(transform, nn.Module):
        return " ".join(repr(transform).split()) if transform is not None else ""
    return getattr(transform, "__qualname__", type(transform).__qualname__)


def _sizes(recipe: Recipe) -> tuple[int | None, int | None]:
    """The size in the first epoch, where it grows, and the full one, where it is told."""
    if isinstance(recipe.img_size, str):
        first, _, full = recipe.img_size.partition(":")
        return int(first), int(full)
    return None, recipe.img_size
