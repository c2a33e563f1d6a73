"""Plots and tables, and the self-contained HTML report; knows plain values only."""
