"""A run whose data is prepared: resolve its network and settings, train, and write the results."""

import copy
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from skipway.distributed import collectives, process_group
from skipway.errors import Interrupted, printable
from skipway.models.load_model import restore
from skipway.models.network import Network
from skipway.runs.checkpoint_state import config_facts
from skipway.runs.console_summary import epochs_line, introduction, range_test_line
from skipway.runs.datamodule import DataModule, refuse_changed_data
from skipway.runs.defaults import head_for, settings_for
from skipway.runs.ensemble import SHARE_OF_TIME
from skipway.runs.environment import describe_environment
from skipway.runs.finish_run import finish_run
from skipway.runs.finished_run import Run
from skipway.runs.head_phase import HeadFit, fit_head
from skipway.runs.image_datamodule import ImageDataModule
from skipway.runs.last_layers import frozen_batches, layers_after
from skipway.runs.last_layers_plan import frozen_layer_for
from skipway.runs.resume import KEPT_SETTINGS, SETTINGS_OF_EARLIER_VERSIONS, EarlierRun, machine_facts
from skipway.runs.run_folder import point_last, write_recipe
from skipway.runs.run_plots import write_range_test
from skipway.runs.signal_flow_callback import SignalFlowCallback
from skipway.runs.table_datamodule import TableDataModule
from skipway.runs.time_budget import FINISH_SECONDS, budget_line
from skipway.runs.time_plan import DEFAULT_SECONDS, FEWEST_IMAGES, last_layers_in_time, scheduled_epochs
from skipway.runs.train_phases import RunContext, train_phases
from skipway.training.lr_finder import range_test
from skipway.training.trainer import Settings, State, Trainer
from skipway.utils.atomic_files import make_folder, write_json
from skipway.utils.console import Console, duration
from skipway.utils.devices import forked_rng
from skipway.utils.run_schema import with_schema
from skipway.utils.stop_signals import StopFlag

__all__ = ["PreparedRun"]


@dataclass
class PreparedRun:
    """A call of `train` whose data is read and whose folder is locked."""

    datamodule: DataModule
    folder: Path
    console: Console
    stop: StopFlag
    earlier: EarlierRun | None
    began: float  # on the monotonic clock
    has_transform: bool
    epochs_are_open: bool  # the time limit sets them
    head: HeadFit | None = None  # the first epoch of a pretrained network
    ensemble: dict[str, Any] | None = None  # weights of network and boosting in a new run

    def __post_init__(self) -> None:
        self.recipe = self.datamodule.recipe
        self.checkpoint = self.earlier.checkpoint if self.earlier else None
        # The recipe for config.yaml, without values that were resolved for this machine.
        self.config = self.earlier.options if self.earlier else self.recipe

    def resolve(self, *, allow_changed_data: bool = False) -> tuple[Network, Settings, int]:
        """Return the network, its settings and the batch size, before training writes anything.

        Values that need training steps stay open: the learning rate of a range test and the epochs of a time limit.
        """
        datamodule, checkpoint = self.datamodule, self.checkpoint
        refuse_changed_data(datamodule, checkpoint, self.folder, allow=allow_changed_data, console=self.console)
        network, pretrained = self._network()
        settings, batch_size = self._settings(network, pretrained)
        if checkpoint is None and settings.head == "regression":
            settings = self._plan_last_layers(network, settings)
        datamodule.setup(network, batch_size, settings.device, checkpoint.state if checkpoint else None)
        return network, settings, batch_size

    def run(self, allow_changed_data: bool) -> Run:
        """Train to the end, from scratch or from the checkpoint, and write the results."""
        network, settings, batch_size = self.resolve(allow_changed_data=allow_changed_data)
        datamodule, recipe, folder, checkpoint = self.datamodule, self.recipe, self.folder, self.checkpoint
        train_batches, val_batches = datamodule.batches("train", train=True), datamodule.batches("val")
        if checkpoint is None:
            datamodule.fit_first_layer(network, train_batches)
        # All inputs have been checked, so the folder may change.
        collectives.run_on_rank0(lambda: self._write_beginning(train_batches, settings, network))
        self._print_introduction(network, settings, batch_size)
        watch = SignalFlowCallback(recipe, folder, datamodule, batch_size=batch_size, console=self.console)
        watch.on_start(network, fresh=checkpoint is None)
        if checkpoint is None and settings.head == "regression":
            self.head = self._fit_head(network, settings)
        if settings.freeze_until is not None:
            train_batches, val_batches, settings = self._frozen_batches(network, settings)
        trainer = Trainer(network, settings, datamodule.name_of, datamodule.task(settings))
        if checkpoint is not None:
            trainer.restore(checkpoint.tensors, checkpoint.state["state"])
            self._reopen(trainer.state)
        else:
            trainer.state.epoch = int(self.head is not None)  # the pace is that of steps which train all layers
            if recipe.lr == "auto":
                self._find_lr(trainer, train_batches)
            if self._is_test_due:
                self._choose_epochs(network, trainer)
            if recipe.ensemble_with is not None:
                self._choose_ensemble(network, trainer)
            if self._is_time_to_fit:
                train_batches = self._fit_time_limit(trainer, train_batches, val_batches)
            trainer.state.epoch = 0
        facts = self._facts(network, trainer.settings, batch_size)
        trainer = train_phases(
            trainer,
            network,
            train_batches,
            val_batches,
            context=RunContext(folder, datamodule, self.console, self.stop),
            head=self.head,
            facts=facts,
            watch=watch,
        )
        network.forward_impl = None
        is_first = collectives.rank() == 0
        process_group.leave_group()
        metrics: dict[str, Any] = {}
        if is_first:
            metrics = finish_run(folder, datamodule, trainer, facts=facts, console=self.console, stop=self.stop)
        return Run(folder, metrics, trainer.state.history)

    def _network(self) -> tuple[Network, bool]:
        """Return the initial network, and True for a new run with pretrained weights."""
        checkpoint = self.checkpoint
        if checkpoint is None:
            torch.manual_seed(self.recipe.seed)
            return self.datamodule.network(self.console)
        # By its plan, not its name: the meaning of a name or "auto" may change between versions.
        plan, spec = checkpoint.state["plan"], checkpoint.state["spec"]
        spec = self.datamodule.spec(spec).as_dict()
        prefix = "network."
        weights = {k.removeprefix(prefix): v for k, v in checkpoint.tensors.items() if k.startswith(prefix)}
        return restore(weights, {"plan": plan, "spec": spec}, printable(checkpoint.path)), False

    def _settings(self, network: Network, pretrained: bool) -> tuple[Settings, int]:
        """Return the settings and the batch size; a resumed run keeps the values that were resolved at its start."""
        datamodule, checkpoint = self.datamodule, self.checkpoint
        batch_size = datamodule.default_batch_size()
        recipe, targets, freeze_until = self.recipe, datamodule.target_counts(), None
        if checkpoint is None:
            head = head_for(recipe, network.plan, pretrained=pretrained, count=targets.count)
            freeze_until = frozen_layer_for(network, recipe, head, has_transform=self.has_transform)
        settings = settings_for(
            recipe,
            network.plan,
            batch_size,
            pretrained=pretrained,
            targets=targets,
            is_table=datamodule.noun == "rows",
            freeze_until=freeze_until,
        )
        if checkpoint is None:
            return settings, batch_size
        saved = {**SETTINGS_OF_EARLIER_VERSIONS, **checkpoint.state["settings"]}
        kept = {name: value for name, value in saved.items() if name in KEPT_SETTINGS}
        if settings.kept_epoch == "best":  # a patience that is new in this call needs the best epoch
            kept["kept_epoch"] = "best"
        return replace(settings, **kept), checkpoint.state["batch_size"]

    def _facts(self, network: Network, settings: Settings, batch_size: int) -> dict[str, Any]:
        """Return the facts in checkpoints besides the trainer's tensors and state."""
        assert network.spec is not None
        ensemble = self.checkpoint.state.get("ensemble") if self.checkpoint else self.ensemble
        return {
            "fingerprint": self.datamodule.fingerprint,
            "plan": dict(network.plan),
            "spec": network.spec.as_dict(),
            **config_facts(self.config),
            "settings": asdict(settings),
            "batch_size": batch_size,
            "grown": self.checkpoint.state["grown"] if self.checkpoint else [],
            **({"ensemble": ensemble} if ensemble else {}),
            "compile": self.checkpoint.state.get("compile", "off") if self.checkpoint else None,
            **self.datamodule.checkpoint_facts(),
            **machine_facts(settings.device, settings.precision),
        }

    def _write_beginning(self, train_batches: Any, settings: Settings, network: Network) -> None:
        """Write the files that are known before the first step."""
        folder = self.folder
        write_recipe(folder, self.config, epochs_are_open=self._is_time_to_fit or self._is_test_due)
        point_last(folder)
        self.datamodule.write_data(folder, train_batches)
        values = describe_environment(self.recipe, settings.device, settings.precision, repr(network))
        write_json(folder / "env.json", with_schema(values))
        make_folder(folder / "weights")

    def _print_introduction(self, network: Network, settings: Settings, batch_size: int) -> None:
        lr_is_open = self.recipe.lr == "auto" and self.earlier is None
        lines = introduction(
            self.datamodule,
            network,
            settings,
            batch_size,
            folder=self.folder,
            lr_is_open=lr_is_open,
            epochs_are_open=self.epochs_are_open,
            test_is_due=self._is_test_due,
        )
        beginning = f"{'resuming' if self.earlier else 'run'} {self.folder}"
        remarks = [f"  {remark}" for remark in self.earlier.remarks] if self.earlier else []
        for line in (beginning, *remarks, *lines):
            self.console.print(line)

    def _find_lr(self, trainer: Trainer, train_batches: Any) -> None:
        """Set the learning rate to the suggestion of a range test, and plot the test in the run folder."""
        result = range_test(trainer, train_batches, poll=self._poll)
        trainer.settings = replace(trainer.settings, lr=result.suggestion)
        collectives.run_on_rank0(lambda: write_range_test(self.folder, result.as_dict()))
        self.console.print(range_test_line(result))

    def _poll(self) -> None:
        if self.stop.requested:
            raise Interrupted(f"stopped by {self.stop.name} before the first step. Run it again.")

    @property
    def _is_test_due(self) -> bool:
        """True if a test on training rows of a table chooses the epochs, and has not yet."""
        return self.epochs_are_open and self.datamodule.rows_choose_epochs

    def _choose_epochs(self, network: Network, trainer: Trainer) -> None:
        """Set the epochs by a test on some of the training rows, with a copy of the initial network."""
        begin, settings = time.monotonic(), trainer.settings
        tested = settings
        if self.recipe.ensemble_with is not None and settings.time_limit is not None:
            tested = replace(settings, time_limit=(1 - SHARE_OF_TIME) * settings.time_limit)
        with forked_rng(trainer.device):
            found = cast(TableDataModule, self.datamodule).choose_epochs(copy.deepcopy(network), tested, self._poll)
        self._change_recipe(epochs=found.best)
        trainer.set_ends(replace(settings, epochs=found.best))
        self.console.print(epochs_line(found, time.monotonic() - begin))

    def _choose_ensemble(self, network: Network, trainer: Trainer) -> None:
        """Choose the weights of the network and of boosting, from the initial network."""
        begin, table = time.monotonic(), cast(TableDataModule, self.datamodule)
        with forked_rng(trainer.device):
            ensemble = table.choose_ensemble(network, trainer.settings, self.stop)
        self.ensemble = ensemble.as_dict()
        self.console.print(f"  {ensemble.describe()} ({duration(time.monotonic() - begin)})")

    def _fit_head(self, network: Network, settings: Settings) -> HeadFit:
        datamodule = cast(ImageDataModule, self.datamodule)
        return fit_head(network, datamodule, settings, self.folder, console=self.console, stop=self.stop)

    @property
    def _is_time_to_fit(self) -> bool:
        """True if the epochs depend on the time limit and are not set yet."""
        return self.epochs_are_open and self.recipe.time_limit is not None and self.datamodule.time_sets_epochs

    def _seconds_left(self) -> float:
        """Return the seconds left of the time limit, or of the default duration."""
        limit = DEFAULT_SECONDS if self.recipe.time_limit is None else self.recipe.time_limit
        return limit - (time.monotonic() - self.began)

    def _change_recipe(self, **changes: Any) -> None:
        self.recipe, self.config = replace(self.recipe, **changes), replace(self.config, **changes)
        self.datamodule.recipe = self.recipe
        collectives.run_on_rank0(lambda: write_recipe(self.folder, self.config))

    def _plan_last_layers(self, network: Network, settings: Settings) -> Settings:
        """Plan to train the last layers if no option forbids it and the time suffices.

        This comes first, so that a run that is stopped early resumes with the same epochs.
        """
        recipe, datamodule = self.recipe, self.datamodule
        is_large = recipe.time_limit is not None or datamodule.count("train") >= FEWEST_IMAGES
        if not self.epochs_are_open or recipe.freeze_until != "auto" or not is_large:
            return settings
        last = frozen_layer_for(network, replace(recipe, epochs=2), settings.head, self.has_transform)
        network.to(settings.device)
        left = self._seconds_left()
        plan = last and last_layers_in_time(network, last, settings, datamodule, seconds=left, folder=self.folder)
        if not plan:
            return settings
        self._change_recipe(freeze_until=last, views=plan.views, epochs=1 + plan.epochs)
        self.epochs_are_open = False
        return self._settings(network, pretrained=True)[0]

    def _frozen_batches(self, network: Network, settings: Settings) -> tuple[Any, Any, Settings]:
        """Return batches of the frozen layers' outputs, and the settings with the remaining time limit."""
        datamodule = cast(ImageDataModule, self.datamodule)
        batches = frozen_batches(network, datamodule, settings, self.folder, console=self.console, stop=self.stop)
        if self.recipe.time_limit is not None and self.head is not None:
            left = max(self._seconds_left() - FINISH_SECONDS, 0.0) + self.head.seconds
            settings = replace(settings, time_limit=left)
        network.forward_impl = layers_after(network, cast(str, settings.freeze_until))
        return *batches, settings

    def _fit_time_limit(self, trainer: Trainer, train_batches: Any, val_batches: Any) -> Any:
        """Set the epochs that fit in the time limit, and return the training batches."""
        limit, network = cast(float, self.recipe.time_limit), cast(Network, trainer.eval_model)
        if self.head is not None and self.head.leaves_no_time(
            network, trainer.settings.precision, self._seconds_left()
        ):
            self._change_recipe()  # its epochs are no longer open
            self.console.print(f"  time limit {duration(limit)}: no time for fine-tuning")
            return train_batches
        epochs, left = scheduled_epochs(
            trainer,
            train_batches,
            val_batches,
            self.datamodule,
            head=self.head,
            seconds_left=self._seconds_left,
        )
        self._change_recipe(epochs=epochs)
        trainer.set_ends(replace(trainer.settings, epochs=epochs, time_limit=left))
        self.console.print(budget_line(epochs, left, limit))
        return self.datamodule.batches("train", train=True)

    def _reopen(self, state: State) -> None:
        """Reopen a finished run if the options ask for more epochs."""
        if state.epoch >= self.recipe.epochs:
            state.status = "finished" if state.status == "running" else state.status
        elif self.earlier is not None and self.earlier.reopened:
            state.status = "running"
