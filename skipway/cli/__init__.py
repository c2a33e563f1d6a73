"""The command line, thin: options become calls of `skipway.commands` and `skipway.runs`."""
