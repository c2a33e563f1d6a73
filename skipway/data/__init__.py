"""Data: from DATA on the command line to batches, with nothing lost in silence."""
