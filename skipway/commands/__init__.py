"""Commands: one file per command, called by the command line and from Python alike; it computes and returns."""
