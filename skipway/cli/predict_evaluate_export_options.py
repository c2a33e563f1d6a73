"""Commands that use a trained model: predict, evaluate, export."""

import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from skipway.cli.json_option import Json, print_report
from skipway.cli.recipe_flags import passed, recipe_flags
from skipway.cli.switch_option import switch
from skipway.data.table_layout import TableLayout
from skipway.errors import InputError, NotFiniteError
from skipway.runs.read_options import READ_OPTIONS
from skipway.utils import stop_signals
from skipway.utils.console import Console, print_error, print_result
from skipway.utils.format_text import count_of
from skipway.utils.malloc_settings import paused_collection
from skipway.utils.output_files import refuse_output

__all__ = ["evaluate", "export", "predict"]

ReadFlags = recipe_flags(READ_OPTIONS, __name__)
_NO_READ_FLAGS = ReadFlags()
LayoutFlags = recipe_flags([field.name for field in fields(TableLayout)], __name__)
_NO_LAYOUT_FLAGS = LayoutFlags()

# Options that predict and evaluate share.
Views = Annotated[
    bool | None,
    Parameter(
        help="Test-time augmentation: mean over shifted and, if harmless, mirrored views. [default: that of the model]",
        show_default=False,
    ),
]
Engine = Annotated[
    Literal["auto", "torch", "openvino"], Parameter(help="Inference engine; auto selects the fastest installed one.")
]
Precision = Annotated[
    Literal["auto", "fp32", "bf16", "int8"],
    Parameter(help="Inference precision; int8 is calibrated on the run's training images."),
]


@dataclass(frozen=True, kw_only=True)
class Computation:
    """Options on how outputs are computed that predict and evaluate share."""

    device: Annotated[str, Parameter(help="Compute device: auto, cpu, cuda, cuda:1, xpu or mps.")] = "auto"
    tta: Views = None


_DEFAULT_COMPUTATION = Computation()


def predict(
    run: Path,
    /,
    *sources: Path,
    top: int = 3,
    computation: Annotated[Computation, Parameter(name="*")] = _DEFAULT_COMPUTATION,
    csv: Path | None = None,
    strict: Annotated[bool, switch()] = False,
    engine: Engine = "auto",
    precision: Precision = "auto",
    flags: Annotated[LayoutFlags, Parameter(name="*")] = _NO_LAYOUT_FLAGS,  # type: ignore[valid-type]
) -> None:
    """Predict the classes or values of images or table rows: one line per input, in order.

    Parameters
    ----------
    run
        Run folder or .safetensors file of skipway.
    sources
        Images, folders or archives, which are searched recursively; tables of rows or of images.
    top
        Number of most likely classes per input.
    csv
        File for the predictions, in addition to standard output.
    strict
        Exit with code 2 if any input could not be predicted, not only if none could.
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
        device=computation.device,
        tta=computation.tta,
        engine=engine,
        precision=precision,
        console=Console(stream=sys.stderr),
        stop=stop_signals.STOP,
        **passed(flags),
    )
    if csv is not None:
        write_predictions(csv, predictions, top)
    for prediction in predictions:
        print_result(str(prediction))
    failed = sum(not prediction.usable for prediction in predictions)
    if failed:
        print_error(f"{failed:,} of {count_of(len(predictions), predictions[0].noun)} could not be used", "warning")
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
    split: Annotated[Literal["train", "val", "test"] | None, Parameter(show_default=False)] = None,
    computation: Annotated[Computation, Parameter(name="*")] = _DEFAULT_COMPUTATION,
    engine: Annotated[
        Literal["auto", "torch", "openvino"],
        Parameter(help="Inference engine; auto evaluates as the end of the run did."),
    ] = "auto",
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "int8"],
        Parameter(help="Inference precision; auto evaluates as the end of the run did."),
    ] = "auto",
    as_json: Json = False,
    flags: Annotated[ReadFlags, Parameter(name="*")] = _NO_READ_FLAGS,  # type: ignore[valid-type]
) -> None:
    """Evaluate a trained model on DATA: accuracy, loss and per-class metrics.

    Parameters
    ----------
    run
        Run folder or .safetensors file of skipway.
    data
        Dataset, as for `skipway train`; classes are matched by name.
    split
        Split to evaluate. [default: test, else val, else all samples]
    """
    with paused_collection():
        from skipway.commands.evaluate import evaluate as evaluate_run

    evaluation = evaluate_run(
        run,
        data,
        split=split,
        device=computation.device,
        tta=computation.tta,
        engine=engine,
        precision=precision,
        console=Console(stream=sys.stderr),
        stop=stop_signals.STOP,
        **passed(flags),
    )
    print_report(evaluation, as_json=as_json)


def export(
    run: Path,
    /,
    *,
    to: Literal["onnx", "pt2", "timm", "torchvision"] = "onnx",
    output: Annotated[Path | None, Parameter(alias="-o", show_default=False)] = None,
    raw: Annotated[bool, switch()] = False,
    device: str = "auto",
) -> None:
    """Export a trained model, verified against PyTorch on the run's images.

    Parameters
    ----------
    run
        Run folder or .safetensors file of skipway.
    to
        Format: ONNX, torch.export program, or weights with timm's or torchvision's names.
    output
        File, or folder for timm and torchvision. [default: RUN/export]
    raw
        Model without preprocessing in the graph.
    device
        Device that runs the exported model for the check; auto: cpu.
    """
    from skipway.commands.export import export_run

    print_result(str(export_run(run, to, output, raw=raw, device=device)))
