"""Commands for runs that have ended: grow them, use them, compare them."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from skipway.utils.console import Console
from skipway.utils.terminal import STOP, print_error, print_result

__all__ = ["compare", "evaluate", "export", "grow", "predict", "probe"]

# What predict and evaluate are both told.
Views = Annotated[
    bool,
    Parameter(
        negative="",
        help="Take the mean over several views of each picture: shifted, and mirrored where that is harmless.",
    ),
]
Engine = Annotated[
    str, Parameter(help="What computes pictures: openvino, torch, or auto: the fastest that is installed.")
]
Precision = Annotated[
    str,
    Parameter(
        help="fp32, bf16, auto (bf16 where the hardware has it), or int8, calibrated on the run's training pictures."
    ),
]


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
    from skipway.runs.growth_phases import blocks_of, grow_run

    told = None if blocks is None else blocks_of(blocks)
    print_result(str(grow_run(run, to, blocks=told, factor=widen, output=output, name=name)))


def predict(
    run: Path,
    /,
    *sources: Path,
    top: int = 3,
    tta: Views = False,
    csv: Path | None = None,
    strict: Annotated[bool, Parameter(negative="")] = False,
    engine: Engine = "auto",
    precision: Precision = "auto",
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
    csv
        Write the rows to this file as well.
    strict
        End with exit code 2 where a picture could not be used.
    """
    from skipway.commands.predict import predict as predict_sources
    from skipway.commands.write_predictions import write_predictions

    rows = predict_sources(
        run,
        sources,
        top=top,
        tta=tta,
        engine=engine,
        precision=precision,
        console=Console(stream=sys.stderr),
        stop=STOP,
    )
    if csv is not None:
        write_predictions(csv, rows, top)
    for row in rows:
        print_result(str(row))
    failed = sum(not row.usable for row in rows)
    if failed:
        print_error(f"{failed:,} of {len(rows):,} {rows[0].noun}s could not be used")
    if failed and strict:
        raise SystemExit(2)


def evaluate(
    run: Path,
    data: str,
    /,
    *,
    split: str | None = None,
    tta: Views = False,
    engine: Engine = "auto",
    precision: Precision = "auto",
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
    """
    from skipway.commands.evaluate import evaluate as evaluate_run

    found = evaluate_run(
        run,
        data,
        split=split,
        tta=tta,
        engine=engine,
        precision=precision,
        console=Console(stream=sys.stderr),
        stop=STOP,
    )
    print_result(str(found))


def export(
    run: Path,
    /,
    *,
    to: str = "onnx",
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    raw: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Write a trained network for use elsewhere, checked against what torch computes on the run's own pictures.

    Parameters
    ----------
    run
        A run folder or a .safetensors file of skipway.
    to
        onnx: pictures of any size in, probabilities out; pt2: the same as a program of torch; timm, torchvision:
        weights under their names, with a config.json.
    output
        The file, or the folder for timm and torchvision; default: in the run's folder export.
    raw
        The network alone, without how pictures are prepared.
    """
    from skipway.commands.export import export_run

    print_result(str(export_run(run, to, output, raw=raw)))


def probe(
    run: Path,
    /,
    *beside: Path,
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
    beside
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

    looks = [look.strip() for look in only.split(",")]
    told = Console(stream=sys.stderr)
    found = probe_run(run, *beside, only=looks, samples=samples, points=points, data=data, console=told, stop=STOP)
    print_result(str(found))


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
