"""Kernels (in C, or one matrix product) and how they are built and chosen; a plain version always exists."""
