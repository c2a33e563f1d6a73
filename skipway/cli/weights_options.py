"""Commands for pretrained weights: weights get."""

import sys
from pathlib import Path
from typing import Annotated

import cyclopts
from cyclopts import Parameter

__all__ = ["weights"]

weights = cyclopts.App(
    name="weights",
    help="Download pretrained weights.",
    help_epilogue="Examples:\n  skipway weights get resnet50",
    help_format="plaintext",
)


@weights.command
def get(
    model: str,
    /,
    *,
    tag: Annotated[str | None, Parameter(show_default=False)] = None,
    output: Annotated[Path | None, Parameter(alias="-o", show_default=False)] = None,
) -> None:
    """Download pretrained weights into one file, for an offline machine.

    Parameters
    ----------
    model
        Architecture from `skipway models`.
    tag
        Tag of timm's weights, such as a1_in1k. [default: timm's default tag]
    output
        File to write. [default: MODEL.safetensors]
    """
    from skipway.commands.weights_get import get_weights
    from skipway.utils.console import Console, print_result

    path = get_weights(model, tag, output, Console(stream=sys.stderr))
    print_result(f"{path}\ntrain with it: skipway train DATA --pretrained {path}")
