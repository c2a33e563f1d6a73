"""Commands that analyze runs: probe, compare."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from skipway.cli.json_option import Json, print_report
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
    data: Annotated[str | None, Parameter(show_default=False)] = None,
) -> None:
    """Analyze a trained model: block diagram, signal flow, ablation of blocks and loss landscape.

    Parameters
    ----------
    run
        Run folder; plots are added to its report, values to its depth.json.
    compared
        Other runs on the same data, plotted next to it.
    only
        Analyses to run, separated by commas.
    samples
        Validation samples to measure on.
    points
        Points of the loss landscape per axis.
    data
        Dataset of the run, if it was moved. [default: the run's]
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


def compare(
    *runs: Path, output: Annotated[Path, Parameter(alias="-o")] = Path("compare.png"), as_json: Json = False
) -> None:
    """Compare runs: metrics, differing options, and validation curves in one plot.

    Parameters
    ----------
    runs
        Two or more run folders.
    output
        Plot of validation against epochs and seconds.
    """
    from skipway.commands.compare import compare as compare_runs

    print_report(compare_runs(runs, output), as_json=as_json)
