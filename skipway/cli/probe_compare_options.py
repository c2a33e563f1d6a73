"""Commands that look into runs: probe, compare."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from skipway.utils import stop_signals
from skipway.utils.console import Console, print_result

__all__ = ["compare", "probe"]


def probe(
    run: Path,
    /,
    *compared: Path,
    only: str = "diagram,flow,lesion,landscape",
    samples: int = 256,
    points: int = 21,
    data: str | None = None,
) -> None:
    """Look into a trained network: how signals flow, what each block is worth, how the loss lies around its weights.

    Parameters
    ----------
    run
        A run folder; the pictures go to its plots and its report, the values to its depth.json.
    compared
        Other runs on the same data, drawn side by side with it.
    only
        Which looks: some of diagram, flow, lesion and landscape, separated by commas.
    samples
        Validation samples to measure on.
    points
        Steps of the landscape's line.
    data
        Where the samples are, if they have moved.
    """
    from skipway.commands.probe import probe_run

    result = probe_run(
        run,
        *compared,
        only=[name.strip() for name in only.split(",")],
        samples=samples,
        points=points,
        data=data,
        console=Console(stream=sys.stderr),
        stop=stop_signals.STOP,
    )
    print_result(str(result))


def compare(*runs: Path, output: Annotated[Path, Parameter(alias="-o")] = Path("compare.png")) -> None:
    """Two or more runs beside each other: figures, what their recipes differ in, and their curves in one picture.

    Parameters
    ----------
    runs
        Run folders.
    output
        Where to draw what was validated over epochs and over seconds.
    """
    from skipway.commands.compare import compare as compare_runs

    print_result(str(compare_runs(runs, output)))
