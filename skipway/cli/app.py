"""The command line, thin: words become calls, and nothing heavier than the flags is loaded before it is needed."""

import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import cyclopts
from cyclopts import Parameter

from skipway.cli import run_commands
from skipway.errors import SkipwayError, is_out_of_memory, out_of_memory
from skipway.runs.recipe import Recipe
from skipway.utils.console import Console
from skipway.utils.malloc_settings import keep_freed_memory, restart_gathering
from skipway.utils.terminal import STOP, print_error, print_result

__all__ = ["app", "main"]

app = cyclopts.App(
    name="skipway",
    help="Networks with shortcut connections: train them on your own pictures and tables, and use what they learned.",
    help_format="plaintext",
    version_flags=["--version"],
    version=lambda: f"skipway {_version()}",
)


def _flags(*left_out: str) -> type:
    """The fields of a Recipe as flags; one that was not given is None, so that a config or a run goes before it."""
    hints = get_type_hints(Recipe)
    made = []
    for f in fields(Recipe):
        if f.name in ("data", *left_out):
            continue
        default = "" if f.default is None else f" [default: {f.default}]"
        flag = Parameter(alias=f.metadata["alias"] or None, help=f.metadata["help"] + default, show_default=False)
        made.append((f.name, Annotated[hints[f.name] | None, flag], None))
    flags = make_dataclass("Flags", made, frozen=True, kw_only=True)
    flags.__module__ = __name__  # Python 3.11 says "types", which cyclopts takes for a plain value
    return flags


Flags = _flags()
_NONE_GIVEN = Flags()
RateFlags = _flags("output", "name")  # find-lr leaves no run folder: its output is the plot
_NO_RATE_FLAGS = RateFlags()


@app.command
def train(
    data: str | None = None,
    *,
    config: Path | None = None,
    resume: Path | None = None,
    allow_changed_data: bool = False,
    nproc: int = 1,
    quiet: Annotated[bool, Parameter(negative="")] = False,
    flags: Annotated[Flags, Parameter(name="*")] = _NONE_GIVEN,  # type: ignore[valid-type]
) -> None:
    """Train a network on DATA and leave a run folder with its weights, tables and a report.

    Parameters
    ----------
    data
        digits; a folder with one sub-folder per class, with or without train, val and test above them; Hugging Face
        parquet files; cifar10, mnist, imagenette or hf:org/name[/folder] by download. Tables: wine, breast_cancer,
        diabetes; a .csv, .tsv or .parquet file, or a folder with train, val and test, with --target. May be left out
        when resuming.
    config
        A YAML file of the options below, such as the config.yaml of a run; options given here go before it.
    resume
        A run folder to go on with exactly; --epochs N goes on for longer.
    allow_changed_data
        Resume although pictures were added, removed or edited.
    nproc
        Processes on this machine that train together, each with its part of every batch.
    quiet
        Say nothing but errors.
    """
    if _alone and not STOP.requested and _recomputes(vars(flags), config, resume):
        restart_gathering()
    if nproc > 1 and "WORLD_SIZE" not in os.environ:
        from skipway.distributed.launch import launch

        return launch(nproc, _words)
    from skipway.runs.train_run import train as train_run

    keep_freed_memory()
    given: dict[str, Any] = {k: v for k, v in vars(flags).items() if v is not None}
    model = given.pop("model", "auto")
    train_run(
        data,
        model,
        config=config,
        resume=resume,
        allow_changed_data=allow_changed_data,
        console=Console(quiet),
        stop=STOP,
        **given,
    )


def _recomputes(given: Mapping[str, Any], config: Path | None, resume: Path | None) -> bool:
    """Whether the training that is asked for is one with --recompute; what cannot be read is refused later."""
    if given.get("recompute") is not None:
        return bool(given["recompute"] != "none")
    for file in (config, resume / "config.yaml" if resume else None):
        with suppress(OSError, SkipwayError):
            if file is not None and Recipe.read(file).get("recompute", "none") != "none":
                return True
    return False


@app.command(name="find-lr")
def find_lr(
    data: str,
    *,
    output: Annotated[Path, Parameter(alias="-o")] = Path("find_lr.png"),
    quiet: Annotated[bool, Parameter(negative="")] = False,
    flags: Annotated[RateFlags, Parameter(name="*")] = _NO_RATE_FLAGS,  # type: ignore[valid-type]
) -> None:
    """Which learning rates suit a network on DATA: a hundred steps with rates that rise, drawn and read.

    Parameters
    ----------
    data
        As for train.
    output
        Where to draw the loss over the rates.
    quiet
        Say nothing but the result and errors.
    """
    from skipway.commands.find_lr import find_lr as find

    keep_freed_memory()
    given: dict[str, Any] = {k: v for k, v in vars(flags).items() if v is not None}
    model = given.pop("model", "auto")
    found = find(data, model, output=output, console=Console(quiet, stream=sys.stderr), stop=STOP, **given)
    print_result(
        f"steepest {found.steepest:.3g}, valley {found.valley:.3g}: try --lr {found.suggestion:.2g}\ndrawn: {output}"
    )


@app.command
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

    print_result(
        check_data(data, max_unreadable, follow_links, allow_empty_classes, Console(stream=sys.stderr), STOP, target)
    )


@app.command
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

    print_result(summarize(model, size, num_classes, code))


@app.command
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


@app.command
def env() -> None:
    """What skipway runs on here: versions, processor, cores, precision, extras."""
    from skipway.commands.env import environment_table

    print_result(environment_table())


_words: list[str] = []  # of the command line
_alone = False  # whether they are those that the process was begun with


for name in run_commands.__all__:
    app.command(getattr(run_commands, name))


def asked_to_stop(name: str) -> None:
    """Count a signal that came before `main` could hear it."""
    STOP.request(name)


def main(words: list[str] | None = None) -> None:
    """Run one command and end the process with its exit code."""
    global _alone
    _alone = words is None
    _words[:] = sys.argv[1:] if words is None else words
    with STOP:
        code = _run(lambda: app(words, exit_on_error=False, print_error=False, result_action="return_value"))
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):  # closed or full: Python would say so once more as it ends
            _silence(stream)
    if "WORLD_SIZE" in os.environ:  # the threads of torch's process group may abort an interpreter that ends
        os._exit(code)
    sys.exit(code)


def _run(command: Callable[[], Any]) -> int:
    """The exit code of a command; every error is one line on standard error."""
    try:
        command()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1 if error.code else 0
    except cyclopts.CycloptsError as error:
        print_error(" ".join(str(error).split()) + "; see --help")
        return 2
    except SkipwayError as error:
        print_error(str(error))
        return error.exit_code
    except BrokenPipeError:  # nobody reads on: not an error of ours
        return 0
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # a fault of ours: the traceback goes to a file, one line to the user
        if is_out_of_memory(error):
            print_error(str(out_of_memory()))
            return out_of_memory().exit_code
        with tempfile.NamedTemporaryFile("w", prefix="skipway-crash-", suffix=".txt", delete=False) as file:
            traceback.print_exc(file=file)
        print_error(
            f"a fault of skipway's own ({type(error).__name__}: {error}); the details are in {file.name}, "
            "please report them"
        )
        return 70
    return 0


def _silence(stream: Any) -> None:
    with suppress(AttributeError, OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _version() -> str:
    from importlib.metadata import version

    return version("skipway")
