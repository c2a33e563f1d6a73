"""Image data of a run: decoding, splits, batches, Spec, network, fingerprint, and the files and lines about them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from skipway.data.folds import pool_images
from skipway.data.image_limits import MAX_PRESIZE
from skipway.data.image_spec import Spec
from skipway.data.images import augment_policy
from skipway.data.images.choose_decode_settings import SMALL, choose_decode_settings
from skipway.data.images.choose_splits import split_images
from skipway.data.images.decode_source import Storage
from skipway.data.images.decoded_cache import decode_images, decoding_seconds, fingerprint
from skipway.data.images.decoded_images import DecodeSettings
from skipway.data.images.device_pixels import pixels_on_device, resident_lines
from skipway.data.images.image_rows import ImageRows, fit_feature_columns
from skipway.data.images.loader import Augmentation, ImageBatches, mean_and_std
from skipway.data.images.mirror_check import apply_mirror_problem, mirror_problem
from skipway.data.images.split import describe, describe_targets
from skipway.data.sample_order import Shard
from skipway.data.sources.image_source import SPLITS, Source
from skipway.data.value_range import describe_range
from skipway.distributed import collectives
from skipway.distributed.unequal_work import unequal_work
from skipway.errors import InputError, printable
from skipway.models.network import Network
from skipway.models.resnet9 import Whitening, whiten
from skipway.runs.clock_recipe import recipe_by_clock
from skipway.runs.defaults import TargetCounts, batch_size_for, head_for, precision_for
from skipway.runs.feature_size import FIT_SECONDS, feature_size, seconds_for_features
from skipway.runs.initial_network import TrainedWeights, choose_model, initial_network, trained_weights
from skipway.runs.last_layers_plan import frozen_layer_for, size_for_last_layers
from skipway.runs.open_recipe_data import split_options
from skipway.runs.prediction_tables import write_evaluation_tables
from skipway.runs.recipe import Recipe
from skipway.runs.resume import describe_changes, read_splits
from skipway.runs.run_csv_tables import write_image_splits
from skipway.runs.run_plots import draw_augmented, write_worst_images
from skipway.runs.small_sets import epochs_for_steps, held_out_count
from skipway.runs.target_checks import count_targets, refuse_options, refuse_other_targets, warnings_of
from skipway.runs.time_budget import scratch_epochs, size_growth
from skipway.training.losses import Task, task_of
from skipway.training.scores import Scores
from skipway.training.trainer import Settings
from skipway.utils.console import Console
from skipway.utils.devices import device_for
from skipway.utils.format_text import count_of, join_counts, short_repr
from skipway.utils.stop_signals import StopFlag

__all__ = ["ImageDataModule"]

_NUM_WHITENED = 5000  # training images for fitting a whitening stem


class ImageDataModule:
    """Images of one run; `DataModule` documents the methods.

    Args:
        source: opened images.
        recipe: options of the run.
        new: the run has no checkpoint yet, so that network and image size are selected by the data.
        transform: transform of training images (B, C, H, W), applied after the recipe's augmentation.
        earlier_spec: Spec of the run to resume or to read again, by which its images were decoded.
        epochs_given: the user set the number of epochs.

    Raises:
        InputError: the images cannot be used, or an option does not apply to them.
    """

    noun: Literal["images", "rows"] = "images"
    rows_choose_epochs = False

    def __init__(
        self,
        source: Source,
        recipe: Recipe,
        new: bool,
        transform: Callable[[Tensor], Tensor] | None = None,
        earlier_spec: dict[str, Any] | None = None,
        epochs_given: bool = True,
    ):
        assert recipe.data is not None
        if transform is not None and not callable(transform):
            raise InputError(
                f"cannot use transform: expected a callable on images (B, C, H, W), got {short_repr(transform)}. Pass "
                "a function or an nn.Module."
            )
        self.transform, self.source = transform, source
        refuse_options(recipe, self.source)
        if recipe.fold is not None:
            self.source = pool_images(self.source)
        self.decode_settings = self._decode_settings(recipe)
        count = self.source.count("train")
        self.epochs = recipe.epochs
        self.model: tuple[str, dict[str, Any]] = ("", {})
        self.weights = TrainedWeights(None, ())
        if new:
            size, channels = self.decode_settings.size, self.decode_settings.channels
            self.model = choose_model(recipe, size, count)
            names = self.source.class_names or self.source.target_names
            task = self.source.task
            self.weights = trained_weights(recipe, self.model, names, size=size, channels=channels, task=task)
        if earlier_spec is not None:
            self.decode_settings = DecodeSettings.of(Spec.from_dict(earlier_spec), recipe.max_pixels)
        elif self.weights.network is not None:
            network = self.weights.network
            self.model = str(network.plan["name"]), self.model[1]
            head = head_for(recipe, network.plan, pretrained=True, count=count)
            recipe = self._prepare_as(network, recipe, head_alone=head == "regression" and not epochs_given)
            if head == "regression":
                self.epochs = 1 if recipe.freeze_until in ("auto", "none") else 5  # epoch 1 fits the head
        elif new:
            asked = recipe
            recipe = recipe_by_clock(asked, self.source, self.decode_settings, epochs_given=epochs_given)
            if recipe.img_size != asked.img_size:
                self.decode_settings = self._decode_settings(recipe)
                self.epochs = scratch_epochs(count)
            self.model = choose_model(recipe, self.decode_settings.size, count)
        if new and self.weights.network is None:  # pretrained weights need fewer steps
            fraction = 1 / recipe.folds if recipe.folds is not None else recipe.val_fraction
            trained = held_out_count(count, fraction, bool(self.source.count("val")))
            batch_size = batch_size_for(recipe, trained)
            self.epochs = epochs_for_steps(self.epochs, trained, batch_size, recipe.grad_accum_steps)
        self.recipe = recipe
        self.time_sets_epochs = recipe.time_limit is not None or self.weights.network is not None
        self.name = self.source.name

    def _decode_settings(self, recipe: Recipe) -> DecodeSettings:
        return choose_decode_settings(self.source, _sizes(recipe)[1], recipe.resize_mode, recipe.max_pixels)

    def _prepare_as(self, network: Network, recipe: Recipe, head_alone: bool) -> Recipe:
        """Configure decoding as the pretrained weights expect it, except for options that the recipe sets.

        If only the head is fitted, the time limit sets the image size. The size becomes part of the returned recipe, so
        that the same recipe gives the same run.
        """
        known = network.spec
        if not isinstance(known, Spec):
            return recipe
        settings = replace(self.decode_settings, interpolation=known.interpolation)
        if len(known.value_range) == settings.channels:
            settings = replace(settings, value_range=known.value_range)
        if settings.size > SMALL:
            size = _sizes(recipe)[1] or known.size
            if head_alone and recipe.img_size is None:
                device = device_for(recipe.device)
                count = sum(self.source.count(split) for split in SPLITS)
                precision = precision_for(recipe, device, is_table=False)
                seconds = None
                if recipe.time_limit is not None:
                    decoding = decoding_seconds(self.source, settings)
                    seconds = seconds_for_features(recipe.time_limit, count, decoding)
                network.to(device)
                smaller = self._size_for_last_layers(network, recipe, precision, seconds)
                size = smaller or feature_size(network, precision, count=count, seconds=seconds)
                network.cpu()
                recipe = replace(recipe, img_size=size)
            stored_size = min(MAX_PRESIZE, round(known.presize * size / known.size))
            settings = replace(settings, size=size, stored_size=stored_size)
            if recipe.resize_mode == "auto":
                settings = replace(settings, resize_mode=known.resize_mode)
        self.decode_settings = settings
        return recipe

    def _size_for_last_layers(
        self, network: Network, recipe: Recipe, precision: str, seconds: float | None
    ) -> int | None:
        """Return the image size for training the last layers within the time limit, or None."""
        counts = {split: self.source.count(split) for split in SPLITS}
        if not counts["val"]:
            counts["val"] = round(counts["train"] * recipe.val_fraction)
            counts["train"] -= counts["val"]
        last = frozen_layer_for(network, replace(recipe, epochs=2), "regression", self.transform is not None)
        if seconds is None or last is None:
            return None
        seconds += sum(counts.values()) * FIT_SECONDS
        return size_for_last_layers(network, last, precision, counts, seconds=seconds)

    def prepare(self, console: Console, stop: StopFlag, *, keep_samples: bool = True) -> None:
        """Decode every image, reject duplicates across splits, and split off the validation images."""
        with unequal_work(stop):
            self.images = decode_images(
                self.source,
                self.decode_settings,
                self.recipe.max_unreadable,
                console=console,
                stop=stop,
                storage=Storage(cache_size=self.recipe.cache_size, keep_pixels=keep_samples),
            )
        split_images(self.images, split_options(self.recipe))
        self.images.warnings += warnings_of(self.images)
        if self.images.mirrored and self.recipe.augment != "none" and keep_samples:
            problem = collectives.run_on_rank0(lambda: mirror_problem(self.images))
            apply_mirror_problem(self.images, problem, self.recipe.augment)
        self.feature_columns = fit_feature_columns(self.images)
        self.fingerprint = fingerprint(self.images, self.feature_columns)

    def default_batch_size(self) -> int:
        """Return the batch size of the recipe, or a default by the number of training images."""
        return batch_size_for(self.recipe, self.count("train"))

    def count(self, split: str) -> int:
        """Return the number of images in a split."""
        return len(self.images.splits.get(split, ()))

    def name_of(self, image: int) -> str:
        """Return the path of an image within the dataset."""
        return self.images.keys[image]

    def target_counts(self) -> TargetCounts:
        """Return the task, and the number of training images in total and of each class or label."""
        return count_targets(self.images)

    def spec(self, earlier: dict[str, Any] | None) -> Spec:
        """Return the Spec of the inputs: from the training images, or `earlier`, that of the run to resume."""
        images, decode_settings = self.images, self.decode_settings
        if earlier is not None:
            spec = Spec.from_dict(earlier)
            refuse_other_targets(spec, images)
            return replace(spec, tta=self._has_views(spec.tta))
        weights = self.weights.network
        if weights is not None and isinstance(weights.spec, Spec):
            mean, std = weights.spec.mean, weights.spec.std
        else:
            mean, std = mean_and_std(images, images.splits["train"])
        return Spec(
            channels=decode_settings.channels,
            size=decode_settings.size,
            presize=decode_settings.stored_size,
            mean=mean,
            std=std,
            **images.output_fields(),
            feature_columns=self.feature_columns,
            resize_mode=decode_settings.resize_mode,
            interpolation=decode_settings.interpolation,
            mirrored=images.mirrored,
            value_range=decode_settings.value_range,
            tta=self._has_views(False),
        )

    def _has_views(self, by_default: bool) -> bool:
        """Return True if the recipe sets test-time augmentation; else the default."""
        return by_default if self.recipe.tta is None else self.recipe.tta

    def network(self, console: Console) -> tuple[Network, bool]:
        """Return the initial network of a new run, and True if it has pretrained weights."""
        return initial_network(self.recipe, self.model, self.spec(None), console, self.weights)

    def setup(self, network: Network, batch_size: int, device: str, earlier: dict[str, Any] | None) -> None:
        """Configure the batches; `earlier` is the state of the run to resume, or None."""
        spec, images, decode_settings = network.require_image_spec(), self.images, self.decode_settings
        self.batch_size, self.device, self.network_spec = batch_size, device, spec
        self.resident = pixels_on_device(images.pixels, device)
        chosen = augment_policy.resolve_policy(
            self.recipe.augment,
            stored_size=decode_settings.stored_size,
            size=decode_settings.size,
            mirrored=images.mirrored,
        )
        self.level: str = chosen if earlier is None else earlier["level"]
        now = _name(self.transform)
        before = now if earlier is None else earlier.get("transform", "")
        if before != now:
            raise InputError(
                f"cannot change transform when resuming: expected {printable(before) or 'none'}, got {now or 'none'}. "
                "Pass the same transform to skipway.train."
            )
        if isinstance(self.transform, nn.Module):
            self.transform.to(device)

    def batches(self, split: str, *, train: bool = False) -> ImageBatches:
        """Return the batches of a split, shuffled and augmented if `train` is set."""
        return ImageBatches(
            self.images,
            self.images.splits[split],
            batch_size=self.batch_size if train else 2 * self.batch_size,
            spec=self.network_spec,
            augmentation=self._augmentation() if train else None,
            device=self.device,
            shard=Shard(collectives.rank(), collectives.world_size()),
            resident=self.resident,
        )

    def _augmentation(self) -> Augmentation:
        recipe = self.recipe
        return Augmentation(
            parts=self.level,
            seed=recipe.seed,
            mixup=recipe.mixup,
            cutmix=recipe.cutmix,
            first_size=_sizes(recipe)[0] or 0,
            epochs=recipe.epochs,
            balanced=recipe.balance == "sampling",
            transform=self.transform,
        )

    def fit_first_layer(self, network: Network, batches: ImageBatches) -> None:
        """Fit a whitening stem, if there is one, to decorrelate the training images."""
        if any(isinstance(module, Whitening) for module in network.modules()):
            x = batches.some(_NUM_WHITENED)[0]
            whiten(network, x.images if isinstance(x, ImageRows) else x)

    def task(self, settings: Settings) -> Task:
        """Return the task of the targets."""
        return task_of(self.network_spec, settings.label_smoothing, settings.class_weights)

    def describe_changes(self, folder: Path) -> str:
        """Describe the changes since the run in `folder` read its images, in one line."""
        return describe_changes(read_splits(folder), self.images)

    def describe(self) -> dict[str, Any]:
        """Return the value of "data" in metrics.json."""
        return describe(self.images)

    def summary_lines(self) -> list[str]:
        """Return the console lines about the images."""
        images = self.images
        counts = join_counts({split: len(rows) for split, rows in images.splits.items()}, "image")
        lines = [f"data: {images.name}, {describe_targets(images)}, {counts}, {images.sizes}"]
        lines += [f"  {self.source.roles}"] if self.source.roles else []
        if images.skipped:
            unreadable = count_of(len(images.skipped), "unreadable image")
            lines.append(f"  {unreadable} skipped, listed in skipped.csv")
        if self.decode_settings.value_range:
            lines.append(f"  deep images: {describe_range(self.decode_settings.value_range)} are scaled to [0, 1]")
        lines += [f"  {count:,} {note}" for note, count in images.notes.most_common()]
        lines += resident_lines(self.resident, self.device)
        return lines + [f"  warning: {warning}" for warning in describe(images)["warnings"]]

    def write_data(self, folder: Path, batches: ImageBatches) -> None:
        """Write splits.csv, skipped.csv and a grid of augmented training images."""
        write_image_splits(folder, self.images)
        draw_augmented(folder, batches)

    def write_evaluation(self, folder: Path, scores: Scores, split: str) -> None:
        """Write predictions, the metrics of each class, label or number, and the highest-loss images."""
        images, spec, scores = self.images, self.network_spec, scores.with_weights(self.images.weights)
        write_evaluation_tables(folder, images.keys, spec, scores, split=split, key_column="file")
        write_worst_images(folder, images, spec, scores)

    def write_submission(self, folder: Path) -> list[str]:
        """Return no lines, because a test table of images without a target is ignored."""
        return []

    def size_growth(self, epochs: int) -> list[float]:
        """Return the growth of the images in each epoch, by area: 0 at the first size, 1 at the full size."""
        return size_growth(self._augmentation(), self.decode_settings.size, epochs)

    def describe_augmentation(self) -> str:
        """Describe the augmentation of training images in words."""
        settings = self.decode_settings
        parts = [augment_policy.describe_policy(self.level, settings.size, settings.channels)]
        first, full = _sizes(self.recipe)
        parts += [f"progressive resizing from {first} to {full} px"] if first else []
        parts += [f"{name} {amount:g}" for name in ("mixup", "cutmix") if (amount := getattr(self.recipe, name))]
        parts += [_name(self.transform)] if self.transform is not None else []
        return ", ".join(parts)

    def checkpoint_facts(self) -> dict[str, Any]:
        """Return the values about augmentation that a checkpoint stores."""
        return {"level": self.level, "transform": _name(self.transform)}

    def extra_metrics(self) -> dict[str, Any]:
        """Return no additional values for metrics.json."""
        return {}


def _name(transform: Callable[[Tensor], Tensor] | None) -> str:
    """Return the name of a transform: the repr of a module, the name of a function."""
    if transform is None:
        return ""
    if isinstance(transform, nn.Module):
        return " ".join(repr(transform).split())
    return getattr(transform, "__qualname__", type(transform).__qualname__)


def _sizes(recipe: Recipe) -> tuple[int | None, int | None]:
    """Return the first size of progressive resizing and the full size; None if the recipe does not set it."""
    if isinstance(recipe.img_size, str):
        first, _, full = recipe.img_size.partition(":")
        return int(first), int(full)
    return None, recipe.img_size
