"""Commands that only print: check, summary, models, env."""

import sys

from skipway.utils import stop_signals
from skipway.utils.console import Console, print_result

__all__ = ["check", "env", "models", "summary"]


def check(
    data: str,
    /,
    *,
    target: str | None = None,
    max_unreadable: float = 1.0,
    follow_links: bool = False,
    allow_empty_classes: bool = False,
) -> None:
    """Look DATA over before training: counts, sizes, imbalance, unreadable files, copies inside and across splits.

    Parameters
    ----------
    data
        As for train.
    target
        The column of a table that is to be predicted.
    max_unreadable
        Share of unreadable pictures beyond which to end with an error.
    follow_links
        Read pictures behind links that lead out of the folder.
    allow_empty_classes
        Leave class folders without pictures out instead of refusing.
    """
    from skipway.commands.check_data import check as check_data

    report = check_data(
        data,
        max_unreadable=max_unreadable,
        follow_links=follow_links,
        allow_empty_classes=allow_empty_classes,
        console=Console(stream=sys.stderr),
        stop=stop_signals.STOP,
        target=target,
    )
    print_result(report)


def summary(model: str, /, *, size: int | None = None, num_classes: int | None = None, code: bool = False) -> None:
    """Layers of a network: output shapes, parameters, multiply-adds, memory in training, receptive fields.

    Parameters
    ----------
    model
        A name of `skipway models`, a run folder or a .safetensors file.
    size
        Height and width of the input; default: the network's own, or 224 (32 for small stems).
    num_classes
        Outputs of a network by name.
    code
        Print the network as the code that builds it instead.
    """
    from skipway.commands.summary import summarize

    print_result(summarize(model, size, num_classes, code=code))


def models(pattern: str = "*", /) -> None:
    """Names of the networks that `train --model` and `summary` know, with their parameters.

    Parameters
    ----------
    pattern
        A shell pattern, such as "resnet1*".
    """
    from skipway.commands.models import model_table

    for line in model_table(pattern):
        print_result(line)


def env() -> None:
    """What skipway runs on here: versions, processor, cores, precision, extras."""
    from skipway.commands.env import environment_table

    print_result(environment_table())
