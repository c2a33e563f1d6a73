"""Plots and the HTML report of a run, from plain values."""
