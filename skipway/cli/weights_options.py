"""Commands for pretrained weights: weights get."""

import sys
from pathlib import Path
from typing import Annotated

import cyclopts
from cyclopts import Parameter

__all__ = ["weights"]

weights = cyclopts.App(name="weights", help="Fetch pretrained weights.", help_format="plaintext")


@weights.command
def get(model: str, /, *, tag: str | None = None, output: Annotated[Path | None, Parameter(alias="-o")] = None) -> None:
    """Download the pretrained weights of a network into one file, for a machine that is offline.

    Parameters
    ----------
    model
        A name from `skipway models`.
    tag
        Which of timm's weights, such as a1_in1k; default: timm's own choice.
    output
        The file to write; default: MODEL.safetensors.
    """
    from skipway.commands.weights_get import get_weights
    from skipway.utils.console import Console, print_result

    path = get_weights(model, tag, output, Console(stream=sys.stderr))
    print_result(f"{path}\ntrain with it: skipway train DATA --pretrained {path}")
