"""Probe: what a network looks like from inside."""
