"""`skipway` and `python -m skipway`: hears signals first, then loads the rest."""

from skipway.utils.stop_signals import StopFlag


def main() -> None:
    """Run the command line; a signal that comes while it loads counts as one that comes right after."""
    with StopFlag() as early:
        from skipway.cli import app

        if early.requested:
            app.request_stop(early.name)
        app.main()


if __name__ == "__main__":
    main()
