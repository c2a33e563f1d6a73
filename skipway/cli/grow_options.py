"""The command grow."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from skipway.utils import stop_signals
from skipway.utils.console import print_result

__all__ = ["grow"]

Optional = Annotated[str | None, Parameter(show_default=False)]


def grow(
    run: Path,
    /,
    *,
    to: Optional = None,
    blocks: Optional = None,
    widen: Annotated[float | None, Parameter(show_default=False)] = None,
    output: Annotated[Path | None, Parameter(alias="-o", show_default=False)] = None,
    name: Optional = None,
) -> None:
    """Make a trained model deeper or wider without changing its outputs, as a new run to resume.

    Parameters
    ----------
    run
        Run folder; it is not changed.
    to
        Deeper or wider architecture of the same family, such as resnet56 for a resnet20.
    blocks
        Blocks per stage instead, such as stage2=4,stage3=2.
    widen
        Width factor instead.
    output
        Parent folder of the new run. [default: that of RUN]
    name
        Name of the new run. [default: DATA-MODEL]
    """
    from skipway.commands.grow import grow_run, parse_blocks

    new_blocks = None if blocks is None else parse_blocks(blocks)
    grown = grow_run(run, to, blocks=new_blocks, factor=widen, output=output, name=name, stop=stop_signals.STOP)
    print_result(str(grown))
