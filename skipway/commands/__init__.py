"""Commands: one module per command, shared by the command line and Python. A command returns its result."""
