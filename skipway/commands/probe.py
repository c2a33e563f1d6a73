"""Probe a run: flow, lesion, landscape and diagram of its network, on its own validation samples."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from skipway.errors import InputError, Interrupted, did_you_mean, printable
from skipway.models.load_model import load
from skipway.models.network import Network, build_network
from skipway.probe.ablation import lesion
from skipway.probe.block_stats import batches_accuracy, batches_loss
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
_SQUARE = 0.6  # points of a square's side over those of a line, for a square has so many as that squared
_MAX_FLOW_SAMPLES = 128


@dataclass(frozen=True)
class ProbeResult:
    """Results of `probe_run`; prints where they were drawn.

    Attributes:
        values: plain values by analysis, as in depth.json.
        plots: the files of the plots.
        report: the run's report.
        notes: what is remarkable, in a line each.
    """

    values: dict[str, Any]
    plots: list[Path]
    report: Path
    notes: list[str]

    def __str__(self) -> str:
        drawn = [f"drawn: {printable(path)}" for path in self.plots]
        return "\n".join([*self.notes, *drawn, f"report: {printable(self.report)}"])


@dataclass(frozen=True)
class _Inputs:
    """What an analysis works on: networks by name, samples x (N, *) and y (N,), points, and the run's folder."""

    networks: dict[str, Network]
    x: Tensor
    y: Tensor
    points: int
    folder: Path


@dataclass(frozen=True)
class _Analysis:
    """What an analysis gives: plain values, files of plots, and lines for the user."""

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
    """Analyze the network of a run: values go to depth.json, plots to plots/ and the report.

    Args:
        run: a run folder, into which all of it is written.
        compared: other runs on the same data, drawn side by side with it: a plain network next to a residual one.
        only: which of "diagram", "flow" (at the beginning and now), "lesion" and "landscape".
        samples: validation samples that everything is measured on, spread over all of them.
        points: steps of the landscape's line; its square has fewer.
        data: the place of the samples, if the run's own recipe no longer leads to them.
        console: where progress is printed; default: nowhere.
        stop: a flag that ends the analysis when it is set.

    Raises:
        InputError: there is no such analysis, no trained network, or no data. Interrupted: `stop` was set.
    """
    console, stop = console or Console(quiet=True), stop or StopFlag()
    for name in only:
        if name not in ANALYSES:
            hint = did_you_mean(name, ANALYSES)
            raise InputError(f"no look is called {name!r}{hint}; there are {', '.join(ANALYSES)}")
    if samples < 2 or points < 3:
        raise InputError(f"probe takes samples of at least 2 and points of at least 3, not {samples} and {points}")
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
            raise Interrupted(f"stopped by {stop.name} before the {name} was measured; what was drawn is kept")
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
            "the runs were not trained on the same data: their inputs or classes differ; give runs on one set, or "
            "probe them one by one"
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
            flows[f"{prefix}fresh weights"] = flow(build_network(network.plan, network.spec), x, y)
        flows[f"{prefix}trained"] = flow(network, x, y)
    values = {name: result.as_dict() for name, result in flows.items()}
    path = inputs.folder / "plots" / "flow.png"
    network_plots.plot_signal_flow(values, path)
    notes = []
    for name, result in flows.items():
        notes += [f"flow, {name}: {note}" for note in result.notes]
    return _Analysis(values, [path], notes)


def _lesion(inputs: _Inputs) -> _Analysis:
    is_regression = inputs.y.is_floating_point()
    score: Callable[..., Any] = (batches_loss if is_regression else batches_accuracy)(inputs.x, inputs.y)
    measure = "loss" if is_regression else "accuracy"
    cuts = {name: lesion(network, score, measure=measure) for name, network in inputs.networks.items()}
    values = {name: cut.as_dict() for name, cut in cuts.items()}
    path = inputs.folder / "plots" / "lesion.png"
    network_plots.plot_ablation(values, path)
    notes = []
    for name, cut in cuts.items():
        notes += [f"lesion, {name}: {note}" for note in cut.left_out]
    return _Analysis(values, [path], notes)


def _landscape(inputs: _Inputs) -> _Analysis:
    loss = batches_loss(inputs.x, inputs.y)
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
