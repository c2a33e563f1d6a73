"""`python -m skipway` is `skipway`."""

from skipway.cli import main

main()
