"""A run looked into: flow, lesion, landscape and diagram of its network, on its own validation samples."""

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
from skipway.report import html, network_plots
from skipway.runs.recipe import Recipe
from skipway.runs.report_samples import samples_of
from skipway.runs.resume import run_folder
from skipway.runs.run_folder import unique_names
from skipway.utils.atomic_files import make_folder, write_file, write_json
from skipway.utils.console import Console
from skipway.utils.signals import StopFlag

__all__ = ["LOOKS", "Probed", "probe_run"]

LOOKS = ("diagram", "flow", "lesion", "landscape")
_SQUARE = 0.6  # points of a square's side over those of a line, for a square has so many as that squared


@dataclass(frozen=True)
class Probed:
    """What `probe_run` found, in plain values by look, and where it was drawn."""

    found: dict[str, Any]
    pictures: list[Path]
    report: Path
    notes: list[str]

    def __str__(self) -> str:
        drawn = [f"drawn: {printable(path)}" for path in self.pictures]
        return "\n".join([*self.notes, *drawn, f"report: {printable(self.report)}"])


def probe_run(
    run: str | os.PathLike[str],
    *beside: str | os.PathLike[str],
    only: Sequence[str] = LOOKS,
    samples: int = 256,
    points: int = 21,
    data: str | None = None,
    console: Console | None = None,
    stop: StopFlag | None = None,
) -> Probed:
    """Look into the network of a run: values go to depth.json, pictures to plots/ and the report.

    Args:
        run: a run folder, into which all of it is written.
        beside: other runs on the same data, drawn side by side with it: a plain network beside a residual one.
        only: which of "diagram", "flow" (at the beginning and now), "lesion" and "landscape".
        samples: validation samples that everything is measured on, spread over all of them.
        points: steps of the landscape's line; its square has fewer.
        data: where the samples are, where the run's own recipe no longer leads to them.

    Raises:
        InputError: there is no such look, no trained network, or no data. Interrupted: `stop` was set.
    """
    console, stop = console or Console(quiet=True), stop or StopFlag()
    for look in only:
        if look not in LOOKS:
            raise InputError(f"no look is called {look!r}{did_you_mean(look, LOOKS)}; there are {', '.join(LOOKS)}")
    if samples < 2 or points < 3:
        raise InputError(f"probe takes samples of at least 2 and points of at least 3, not {samples} and {points}")
    folders = [run_folder(Path(one)) for one in (run, *beside)]
    networks = {name: load(folder) for name, folder in zip(unique_names(folders), folders, strict=True)}
    folder = folders[0]
    x, y = torch.empty(0), torch.empty(0)
    if set(only) - {"diagram"}:
        spec = next(iter(networks.values())).spec
        if any(network.spec != spec for network in networks.values()):
            raise InputError(
                "the runs were not trained on the same data: their inputs or classes differ; give runs on one set, or "
                "probe them one by one"
            )
        network = next(iter(networks.values()))
        x, y = samples_of(folder, network, {"val": samples}, data=data, console=console, stop=stop)["val"]
    make_folder(folder / "plots")
    found: dict[str, Any] = {}
    pictures: list[Path] = []
    notes: list[str] = []
    for look in (look for look in LOOKS if look in only):
        if stop.requested:
            raise Interrupted(f"stopped by {stop.name} before the {look} was measured; what was drawn is kept")
        console.print(f"{look} ...")
        values, drawn, said = _LOOK[look](networks, x, y, points, folder)
        found[look], notes = values, notes + said
        pictures += drawn
    write_json(folder / "depth.json", found)
    return Probed(found, pictures, html.write(folder), notes)


Looked = tuple[Any, list[Path], list[str]]


def _diagram(networks: dict[str, Network], x: Tensor, y: Tensor, points: int, folder: Path) -> Looked:
    network = next(iter(networks.values()))
    path = folder / "plots" / "diagram.svg"
    write_file(path, diagram(network).encode())
    return {"plan": network.plan}, [path], []


def _flow(networks: dict[str, Network], x: Tensor, y: Tensor, points: int, folder: Path) -> Looked:
    flows = {}
    for name, network in networks.items():
        before = f"{name}, " if len(networks) > 1 else ""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_recipe(folder).seed)
            flows[f"{before}fresh weights"] = flow(build_network(network.plan, network.spec), x[:128], y[:128])
        flows[f"{before}trained"] = flow(network, x[:128], y[:128])
    values = {name: found.as_dict() for name, found in flows.items()}
    path = folder / "plots" / "flow.png"
    network_plots.flow(values, path)
    return values, [path], [f"flow, {name}: {note}" for name, found in flows.items() for note in found.notes]


def _lesion(networks: dict[str, Network], x: Tensor, y: Tensor, points: int, folder: Path) -> Looked:
    classes = not y.is_floating_point()
    score: Callable[..., Any] = batches_accuracy(x, y) if classes else batches_loss(x, y)
    measure = "accuracy" if classes else "loss"
    cuts = {name: lesion(network, score, measure=measure) for name, network in networks.items()}
    values = {name: cut.as_dict() for name, cut in cuts.items()}
    path = folder / "plots" / "lesion.png"
    network_plots.lesion(values, path)
    return values, [path], [f"lesion, {name}: {note}" for name, cut in cuts.items() for note in cut.left_out]


def _landscape(networks: dict[str, Network], x: Tensor, y: Tensor, points: int, folder: Path) -> Looked:
    judge = batches_loss(x, y)
    side = max(3, round(points * _SQUARE) // 2 * 2 + 1)
    kinds = {"landscape": (1, points // 2 * 2 + 1), "landscape_square": (2, side)}
    values, drawn = {}, []
    for kind, (dims, count) in kinds.items():
        found = {name: landscape(n, judge, dims=dims, points=count).as_dict() for name, n in networks.items()}
        drawn.append(folder / "plots" / f"{kind}.png")
        network_plots.landscape(found, drawn[-1])
        values[kind] = found
    return values, drawn, []


_LOOK = {"diagram": _diagram, "flow": _flow, "lesion": _lesion, "landscape": _landscape}


def _recipe(folder: Path) -> Recipe:
    return Recipe.of(Recipe.read(folder / "config.yaml"))
