"""The command grow."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from skipway.utils import stop_signals
from skipway.utils.console import print_result

__all__ = ["grow"]


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
    from skipway.commands.grow import grow_run, parse_blocks

    new_blocks = None if blocks is None else parse_blocks(blocks)
    grown = grow_run(run, to, blocks=new_blocks, factor=widen, output=output, name=name, stop=stop_signals.STOP)
    print_result(str(grown))
