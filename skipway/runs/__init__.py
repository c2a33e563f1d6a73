"""Runs: data, network, training and run folder of a Recipe."""
