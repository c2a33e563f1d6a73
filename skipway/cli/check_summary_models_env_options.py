"""Commands that only print: check, summary, models, env, cache."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from skipway.cli.json_option import Json, print_report
from skipway.cli.recipe_flags import passed, recipe_flags
from skipway.cli.switch_option import switch
from skipway.errors import InputError
from skipway.runs.read_options import CHECK_OPTIONS
from skipway.utils import stop_signals
from skipway.utils.console import Console, print_json, print_result
from skipway.utils.run_schema import with_schema

__all__ = ["cache", "check", "env", "models", "summary"]

ReadFlags = recipe_flags(CHECK_OPTIONS, __name__)
_NO_READ_FLAGS = ReadFlags()
Switch = Annotated[bool, switch()]
Optional = Annotated[int | None, Parameter(show_default=False)]


def check(
    data: str,
    /,
    *,
    max_unreadable: float = 1.0,
    output: Annotated[Path | None, Parameter(alias="-o", show_default=False)] = None,
    as_json: Json = False,
    flags: Annotated[ReadFlags, Parameter(name="*")] = _NO_READ_FLAGS,  # type: ignore[valid-type]
) -> None:
    """Check DATA before training: counts, sizes, imbalance, unreadable files, duplicates within and across splits.

    Parameters
    ----------
    data
        Dataset, as for `skipway train`.
    max_unreadable
        Maximum share of unreadable images.
    output
        YAML file for the kinds of table columns, for --columns.
    """
    from skipway.commands.check_data import check as check_data

    report = check_data(
        data,
        max_unreadable=max_unreadable,
        output=output,
        console=Console(stream=sys.stderr),
        stop=stop_signals.STOP,
        **passed(flags),
    )
    print_report(report, as_json=as_json)


def summary(
    model: str, /, *, size: Optional = None, num_classes: Optional = None, code: Switch = False, as_json: Json = False
) -> None:
    """Summarize a network: output shapes, parameters, MACs, training memory and receptive fields of its layers.

    Parameters
    ----------
    model
        Architecture from `skipway models`, run folder or .safetensors file.
    size
        Input height and width. [default: the model's input size, else 224, or 32 for small stems]
    num_classes
        Number of classes of a named architecture. [default: that of its paper]
    code
        Print the Python code that builds the network.
    """
    from skipway.commands.summary import summarize

    if code and as_json:
        raise InputError("cannot summarize: expected --code or --json, got both. Drop one of them.")
    result = summarize(model, size, num_classes, code=code)
    if isinstance(result, str):
        print_result(result)
    else:
        print_report(result, as_json=as_json)


def models(
    *patterns: str,
    exclude: Annotated[tuple[str, ...], Parameter(show_default=False, negative="")] = (),
    pretrained: Switch = False,
    as_json: Json = False,
) -> None:
    """List the architectures for --model with their parameter counts.

    Parameters
    ----------
    patterns
        Shell patterns, as "resnet1*". [default: all]
    exclude
        Shell pattern of names to leave out; may be repeated.
    pretrained
        List pretrained weights, as resnet18.a1_in1k.
    """
    from skipway.commands.models import model_facts, model_table

    if as_json:
        return print_json(with_schema({"models": model_facts(patterns or "*", exclude, pretrained)}))
    for line in model_table(patterns or "*", exclude, pretrained):
        print_result(line)


def env(*, as_json: Json = False) -> None:
    """Print versions, processor, cores, precision and installed extras."""
    from skipway.commands.env import environment_facts, environment_table

    if as_json:
        return print_json(with_schema(environment_facts()))
    print_result(environment_table())


def cache(*, clear: Switch = False, as_json: Json = False) -> None:
    """List the cache of decoded images and features, or clear it.

    Parameters
    ----------
    clear
        Remove all files that no process uses.
    """
    from skipway.commands.cache import cache as cache_report

    print_report(cache_report(clear=clear), as_json=as_json)
