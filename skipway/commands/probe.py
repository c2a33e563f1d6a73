"""Probe a run: signal flow, ablation, loss landscape and diagram of its model, on its validation samples."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from skipway.errors import InputError, Interrupted, did_you_mean, printable
from skipway.models.load_model import load
from skipway.models.network import Network, build_network
from skipway.probe.ablation import lesion
from skipway.probe.block_stats import batches_accuracy, batches_loss, natural_loss
from skipway.probe.diagram import diagram
from skipway.probe.loss_landscape import landscape
from skipway.probe.signal_flow import flow
from skipway.report import html, loss_landscape_plot, network_plots
from skipway.runs.report_samples import samples_of
from skipway.runs.run_folder import read_recipe, resolve_run_folder, unique_names
from skipway.utils.atomic_files import make_folder, write_file, write_json
from skipway.utils.console import Console
from skipway.utils.run_schema import with_schema
from skipway.utils.stop_signals import StopFlag

__all__ = ["ANALYSES", "ProbeResult", "probe_run"]

ANALYSES = ("diagram", "flow", "lesion", "landscape")
_SQUARE = 0.6  # side of the square relative to the line; the square needs its number of points squared
_MAX_FLOW_SAMPLES = 128


@dataclass(frozen=True)
class ProbeResult:
    """Results of `probe_run`; prints the notes and the paths of the plots.

    Attributes:
        values: plain values by analysis, as in depth.json.
        plots: plot files.
        report: report of the run.
        notes: notable results, one per line.
    """

    values: dict[str, Any]
    plots: list[Path]
    report: Path
    notes: list[str]

    def __str__(self) -> str:
        plots = [f"plot: {printable(path)}" for path in self.plots]
        return "\n".join([*self.notes, *plots, f"report: {printable(self.report)}"])


@dataclass(frozen=True)
class _Inputs:
    """Inputs of an analysis: networks by name, samples x (N, *) and y (N, ...), points, and the run folder."""

    networks: dict[str, Network]
    x: Tensor
    y: Tensor
    points: int
    folder: Path

    @property
    def loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Loss of the task, without class weights or smoothing."""
        spec = next(iter(self.networks.values())).spec
        is_multilabel = spec is not None and spec.task == "multilabel"
        return F.binary_cross_entropy_with_logits if is_multilabel else natural_loss


@dataclass(frozen=True)
class _Analysis:
    """Results of an analysis: plain values, plot files, and notes for the user."""

    values: Any
    plots: list[Path]
    notes: list[str]


def probe_run(
    run: str | os.PathLike[str],
    *compared: str | os.PathLike[str],
    only: Sequence[str] = ANALYSES,
    samples: int = 256,
    points: int = 21,
    data: str | None = None,
    console: Console | None = None,
    stop: StopFlag | None = None,
) -> ProbeResult:
    """Analyze the model of a run, and write depth.json, plots and the report.

    Args:
        run: run folder, which receives all results.
        compared: further runs on the same data, shown side by side, such as a plain network next to a residual one.
        only: analyses to run: "diagram", "flow" (at initialization and trained), "lesion" (ablation) and "landscape"
            (loss landscape).
        samples: number of validation samples, evenly spread over all of them.
        points: points on the line of the loss landscape; the side of its square has fewer.
        data: path of the dataset, if it is not where the run found it.
        console: prints progress; by default, nothing is printed.
        stop: flag that stops the analysis when it is set.

    Returns:
        Values, plots and notes of the analyses.

    Raises:
        InputError: an argument is invalid, or the run has no trained model or no data.
        Interrupted: `stop` was set.
    """
    console, stop = console or Console(quiet=True), stop or StopFlag()
    for name in only:
        if name not in ANALYSES:
            hint = did_you_mean(name, ANALYSES)
            raise InputError(
                f"invalid analysis: expected some of {', '.join(ANALYSES)}, got {name!r}{hint}. Choose from this list."
            )
    if samples < 2 or points < 3:
        raise InputError(
            f"invalid samples or points: expected at least 2 samples and at least 3 points, got {samples} and "
            f"{points}. Pass larger numbers."
        )
    folders = [resolve_run_folder(Path(path)) for path in (run, *compared)]
    networks = {name: load(folder) for name, folder in zip(unique_names(folders), folders, strict=True)}
    folder = folders[0]
    x, y = torch.empty(0), torch.empty(0)
    if set(only) - {"diagram"}:
        _refuse_other_specs(list(networks.values()))
        network = next(iter(networks.values()))
        x, y = samples_of(folder, network, {"val": samples}, data=data, console=console, stop=stop)["val"]
    make_folder(folder / "plots")
    inputs = _Inputs(networks, x, y, points=points, folder=folder)
    values: dict[str, Any] = {}
    plots: list[Path] = []
    notes: list[str] = []
    for name in (name for name in ANALYSES if name in only):
        if stop.requested:
            raise Interrupted(
                f"stopped by {stop.name} before the {name} analysis. Finished plots are kept. Run it again."
            )
        console.print(f"{name} ...")
        analysis = _ANALYZE[name](inputs)
        values[name] = analysis.values
        plots += analysis.plots
        notes += analysis.notes
    write_json(folder / "depth.json", with_schema(values))
    return ProbeResult(values=values, plots=plots, report=html.write(folder), notes=notes)


def _refuse_other_specs(networks: list[Network]) -> None:
    if any(network.spec != networks[0].spec for network in networks):
        raise InputError(
            "cannot compare the runs: expected the same inputs and classes in all of them, got different ones. Pass "
            "runs on the same data, or probe each run alone."
        )


def _diagram(inputs: _Inputs) -> _Analysis:
    network = next(iter(inputs.networks.values()))
    path = inputs.folder / "plots" / "diagram.svg"
    write_file(path, diagram(network).encode())
    return _Analysis({"plan": network.plan}, [path], [])


def _flow(inputs: _Inputs) -> _Analysis:
    x, y = inputs.x[:_MAX_FLOW_SAMPLES], inputs.y[:_MAX_FLOW_SAMPLES]
    flows = {}
    for name, network in inputs.networks.items():
        prefix = f"{name}, " if len(inputs.networks) > 1 else ""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(read_recipe(inputs.folder).seed)
            flows[f"{prefix}fresh weights"] = flow(build_network(network.plan, network.spec), x, y, inputs.loss)
        flows[f"{prefix}trained"] = flow(network, x, y, inputs.loss)
    values = {name: result.as_dict() for name, result in flows.items()}
    path = inputs.folder / "plots" / "flow.png"
    network_plots.plot_signal_flow(values, path)
    notes = []
    for name, result in flows.items():
        notes += [f"flow, {name}: {note}" for note in result.notes]
    return _Analysis(values, [path], notes)


def _lesion(inputs: _Inputs) -> _Analysis:
    has_classes = not inputs.y.is_floating_point()
    score: Callable[..., Any] = batches_loss(inputs.x, inputs.y, loss=inputs.loss)
    if has_classes:
        score = batches_accuracy(inputs.x, inputs.y)
    measure = "accuracy" if has_classes else "loss"
    cuts = {name: lesion(network, score, measure=measure) for name, network in inputs.networks.items()}
    values = {name: cut.as_dict() for name, cut in cuts.items()}
    path = inputs.folder / "plots" / "lesion.png"
    network_plots.plot_ablation(values, path)
    notes = []
    for name, cut in cuts.items():
        notes += [f"ablation, {name}: {note}" for note in cut.left_out]
    return _Analysis(values, [path], notes)


def _landscape(inputs: _Inputs) -> _Analysis:
    loss = batches_loss(inputs.x, inputs.y, loss=inputs.loss)
    side = max(3, round(inputs.points * _SQUARE) // 2 * 2 + 1)
    kinds = {"landscape": (1, inputs.points // 2 * 2 + 1), "landscape_square": (2, side)}
    values, plots = {}, []
    for kind, (dims, count) in kinds.items():
        values[kind] = {
            name: landscape(network, loss, dims=dims, points=count).as_dict()
            for name, network in inputs.networks.items()
        }
        plots.append(inputs.folder / "plots" / f"{kind}.png")
        loss_landscape_plot.plot_loss_landscape(values[kind], plots[-1])
    return _Analysis(values, plots, [])


_ANALYZE = {"diagram": _diagram, "flow": _flow, "lesion": _lesion, "landscape": _landscape}
