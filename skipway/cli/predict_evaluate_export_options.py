"""Commands that use a trained network: predict, evaluate, export."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from skipway.errors import InputError, NotFiniteError
from skipway.utils import stop_signals
from skipway.utils.console import Console, print_error, print_result
from skipway.utils.malloc_settings import paused_collection
from skipway.utils.output_files import refuse_output

__all__ = ["evaluate", "export", "predict"]

# Options that predict and evaluate share.
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
        End with exit code 2 if any input could not be used, not only if none could.
    """
    with paused_collection():
        from skipway.commands.predict import predict as predict_sources
        from skipway.commands.prediction_output import NOT_FINITE, write_predictions

    if csv is not None:
        refuse_output(csv, (run, *sources))
    predictions = predict_sources(
        run,
        sources,
        top=top,
        tta=tta,
        engine=engine,
        precision=precision,
        console=Console(stream=sys.stderr),
        stop=stop_signals.STOP,
    )
    if csv is not None:
        write_predictions(csv, predictions, top)
    for prediction in predictions:
        print_result(str(prediction))
    failed = sum(not prediction.usable for prediction in predictions)
    if failed:
        print_error(f"{failed:,} of {len(predictions):,} {predictions[0].noun}s could not be used")
    has_answers = failed < len(predictions)
    if not has_answers and any(prediction.reason == NOT_FINITE for prediction in predictions):
        raise SystemExit(NotFiniteError.exit_code)
    if failed and (strict or not has_answers):
        raise SystemExit(InputError.exit_code)


def evaluate(
    run: Path,
    data: str,
    /,
    *,
    split: str | None = None,
    tta: Views = False,
    engine: str = "auto",
    precision: str = "auto",
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
    engine
        torch, openvino, or auto: as at the end of the run, unless precision is set.
    precision
        fp32, bf16, int8, or auto: fp32, as at the end of the run.
    """
    with paused_collection():
        from skipway.commands.evaluate import evaluate as evaluate_run

    evaluation = evaluate_run(
        run,
        data,
        split=split,
        tta=tta,
        engine=engine,
        precision=precision,
        console=Console(stream=sys.stderr),
        stop=stop_signals.STOP,
    )
    print_result(str(evaluation))


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
