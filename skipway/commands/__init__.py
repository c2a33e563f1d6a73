"""One file per command, called by the command line and from Python alike."""
