"""The app of the command line: its commands, its exit codes, and errors on one line.

Imports beyond the flags are deferred until a command needs them.
"""

import atexit
import logging
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import cyclopts

from skipway.cli.check_summary_models_env_options import cache, check, env, models, summary
from skipway.cli.crash_traceback import write_crash_traceback
from skipway.cli.grow_options import grow
from skipway.cli.predict_evaluate_export_options import evaluate, export, predict
from skipway.cli.probe_compare_options import compare, probe
from skipway.cli.train_options import COMMAND_LINE, find_lr, train
from skipway.cli.weights_options import weights
from skipway.errors import Interrupted, SkipwayError
from skipway.utils import stop_signals
from skipway.utils.address_space import refuse_small_address_space
from skipway.utils.console import print_error, print_warning

__all__ = ["app", "main"]


def _examples(*lines: str) -> str:
    """Return lines of examples for the end of a help text."""
    return "\n".join(["Examples:", *(f"  {line}" for line in lines)])


app = cyclopts.App(
    name="skipway",
    help="Train networks with shortcut connections on images and tables, and use the trained models.",
    help_epilogue=_examples("skipway train photos/", "skipway predict runs/last new/", "skipway train --help"),
    help_format="plaintext",
    version_flags=["--version"],
    version=lambda: f"skipway {_version()}",
    suppress_keyboard_interrupt=False,
)
EXAMPLES: dict[Callable[..., None], tuple[str, ...]] = {
    train: (
        "skipway train photos/ --time-limit 600",
        "skipway train photos/ --time-limit 600 --dry-run",
        "skipway train homes.csv --target price",
        "skipway train --resume runs/last --epochs 40",
    ),
    find_lr: ("skipway find-lr photos/ --model resnet50", "skipway find-lr homes.csv --target price -o lr.png"),
    check: ("skipway check photos/", "skipway check homes.csv --target price"),
    summary: ("skipway summary resnet50 --size 160", "skipway summary runs/last", "skipway summary resnet20 --code"),
    models: ("skipway models", 'skipway models "resnet1*" --exclude "*d"', "skipway models --pretrained"),
    env: ("skipway env",),
    cache: ("skipway cache", "skipway cache --clear"),
    compare: ("skipway compare runs/a runs/b", "skipway compare runs/a runs/b runs/c -o curves.png"),
    evaluate: ("skipway evaluate runs/last other_photos/", "skipway evaluate runs/last other_photos/ --tta"),
    export: ("skipway export runs/last", "skipway export runs/last --to timm -o exported/"),
    grow: ("skipway grow runs/last --to resnet56", "skipway grow runs/last --widen 2 --name wider"),
    predict: ("skipway predict runs/last new/*.jpg", "skipway predict runs/last new/ --csv predictions.csv"),
    probe: ("skipway probe runs/last", "skipway probe runs/last runs/other --only flow,landscape"),
}
for _command, _lines in EXAMPLES.items():
    app.command(_command, help_epilogue=_examples(*_lines))
app.command(weights)
app.register_install_completion_command(add_to_startup=False)


def main(words: list[str] | None = None) -> None:
    """Run one command and end the process with its exit code.

    Args:
        words: the command line without the program name; default: `sys.argv[1:]`.
    """
    COMMAND_LINE.owns_process = words is None
    COMMAND_LINE.words = sys.argv[1:] if words is None else words
    stop_signals.STOP.interrupts = True
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns of a home folder that is not writable
    with stop_signals.STOP, warnings.catch_warnings():
        warnings.showwarning = print_warning
        code = _run(lambda: _call(words))
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (AttributeError, OSError, ValueError):  # closed or full: Python would report it again at exit
                _silence(stream)
        if words is None:
            _end(code)
    sys.exit(code)


def _call(words: list[str] | None) -> None:
    """Parse the command line and call its command."""
    if not {"-h", "--help", "--version"}.intersection(COMMAND_LINE.words):
        refuse_small_address_space()
    app(words, exit_on_error=False, print_error=False, result_action="return_value")


def _end(code: int) -> None:
    """End the process with `code`, ignoring further signals.

    The interpreter's normal exit is skipped: signals would count again during it, and torch's threads may abort.
    """
    stop_signals.STOP.finish(code)
    with suppress(Exception):
        atexit._run_exitfuncs()
    os._exit(code)


def _run(command: Callable[[], Any]) -> int:
    """Run a command and return its exit code; every error is one line on standard error."""
    try:
        command()
    except SystemExit as error:
        return _code_of(error)
    except cyclopts.CycloptsError as error:
        print_error(f"{' '.join(str(error).split()).removesuffix('.')}. See --help.")
        return 2
    except SkipwayError as error:
        print_error(str(error), "" if isinstance(error, Interrupted) else "error")
        return error.exit_code
    except BrokenPipeError:  # the reader has closed the pipe, as `head` does
        return 0
    except KeyboardInterrupt:
        return _stopped() if stop_signals.STOP.requested else 130
    except Exception as error:  # a bug: the traceback goes to a file, one line to the user
        if stop_signals.STOP.requested and stop_signals.STOP.interrupts:  # a library turned KeyboardInterrupt into it
            return _stopped()
        return write_crash_traceback(error)
    return 0


def _stopped() -> int:
    print_error(f"stopped by {stop_signals.STOP.name}: written files are complete. Run it again.", "")
    return stop_signals.STOPPED


def _code_of(error: SystemExit) -> int:
    if isinstance(error.code, int):
        return error.code
    return 1 if error.code else 0


def _silence(stream: Any) -> None:
    with suppress(AttributeError, OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _version() -> str:
    from importlib.metadata import version

    return version("skipway")
