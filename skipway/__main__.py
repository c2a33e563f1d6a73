"""`python -m skipway` is `skipway`."""

from skipway.cli import main

if __name__ == "__main__":
    main()
