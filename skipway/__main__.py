"""`skipway` and `python -m skipway`: hears signals first, then loads the rest."""

import os

from skipway.errors import InputError
from skipway.utils.stop_signals import STOP, STOPPED


def main() -> None:
    """Run the command line; a signal that comes while it loads ends it at once."""
    try:
        os.getcwd()
    except FileNotFoundError:  # the libraries of torch end the process without a word of ours
        os.write(
            2,
            b"skipway: error: cannot start: expected a working folder, got a removed one. Change to another.\n",
        )
        os._exit(InputError.exit_code)
    STOP.interrupts = True
    with STOP:
        try:
            from skipway.cli import app

            app.main()
        except KeyboardInterrupt:  # while the rest was loaded
            os.write(2, f"skipway: stopped by {STOP.name} before anything was done; start again\n".encode())
            os._exit(STOPPED)


if __name__ == "__main__":
    main()
