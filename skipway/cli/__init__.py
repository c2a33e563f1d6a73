"""The command line, thin: a file per group of commands with their flags and help, which call `skipway.commands`."""
