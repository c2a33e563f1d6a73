"""Runs: a Recipe becomes data, a network, training and a run folder."""
