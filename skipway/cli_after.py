"""Commands for runs that have ended: grow them, use them, compare them."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from skipway.console import Console
from skipway.terminal import STOP, complain, say

__all__ = ["compare", "evaluate", "grow", "predict"]


def grow(
    run: Path,
    /,
    *,
    to: str | None = None,
    blocks: str | None = None,
    widen: float | None = None,
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    name: str | None = None,
) -> None:
    """Make a trained network deeper or wider without changing its outputs: a new run that trains on from there.

    Parameters
    ----------
    run
        A run folder; it stays as it is.
    to
        Name of a deeper or wider network of the same kind, such as resnet56 for a resnet20.
    blocks
        Or how many blocks some stages get, as stage2=4 or stage2=4,stage3=2.
    widen
        Or how many times as wide it becomes.
    output
        Folder for the new run; default: the old one's.
    name
        Name of the new run; default: data-network.
    """
    from skipway.growing import blocks_of, grow_run

    told = None if blocks is None else blocks_of(blocks)
    say(str(grow_run(run, to, blocks=told, factor=widen, output=output, name=name)))


def predict(
    run: Path,
    /,
    *sources: Path,
    top: int = 3,
    tta: Annotated[bool, Parameter(negative="")] = False,
    csv: Path | None = None,
    strict: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Say what is on pictures, or what rows of tables mean: one row per input, in order, with the likeliest classes.

    Parameters
    ----------
    run
        A run folder or a .safetensors file of skipway; nothing else is needed.
    sources
        Pictures, or folders whose pictures are taken at any depth; for a run on a table: .csv, .tsv, .parquet files.
    top
        How many classes to name.
    tta
        Take the mean over several views of each picture: shifted, and mirrored where that is harmless.
    csv
        Write the rows to this file as well.
    strict
        End with exit code 2 where a picture could not be used.
    """
    from skipway.data.table_spec import TableSpec
    from skipway.stored import load
    from skipway.use import predict as predict_sources
    from skipway.use import write_predictions

    network = load(run)
    rows = predict_sources(network, sources, top=top, tta=tta, console=Console(stream=sys.stderr), stop=STOP)
    table = isinstance(network.spec, TableSpec)
    if csv is not None:
        write_predictions(csv, rows, top, "row" if table else "file")
    for row in rows:
        say(str(row))
    failed = sum(not row.usable for row in rows)
    if failed:
        complain(f"{failed:,} of {len(rows):,} {'rows' if table else 'pictures'} could not be used")
    if failed and strict:
        raise SystemExit(2)


def evaluate(
    run: Path, data: str, /, *, split: str | None = None, tta: Annotated[bool, Parameter(negative="")] = False
) -> None:
    """Measure a trained network on DATA: accuracy, loss and a table per class.

    Parameters
    ----------
    run
        A run folder or a .safetensors file of skipway.
    data
        As for train; classes are matched by name.
    split
        train, val or test; default: test where there is one, else val, else everything.
    tta
        Take the mean over several views of each picture: shifted, and mirrored where that is harmless.
    """
    from skipway.use import evaluate as evaluate_run

    say(str(evaluate_run(run, data, split=split, tta=tta, console=Console(stream=sys.stderr), stop=STOP)))


def compare(*runs: Path, picture: Path = Path("compare.png")) -> None:
    """Two or more runs beside each other: figures, what their recipes differ in, and their curves in one picture.

    Parameters
    ----------
    runs
        Run folders.
    picture
        Where to draw what was validated over epochs and over seconds.
    """
    from skipway.comparison import compare as compare_runs

    say(str(compare_runs(runs, picture)))
