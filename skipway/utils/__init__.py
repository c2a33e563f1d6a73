"""Utilities: console, signals, devices, allocator settings, atomic files and text formatting."""
