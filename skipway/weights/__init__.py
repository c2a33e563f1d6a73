"""Weights: import and export of other libraries' checkpoints, and pretrained weights."""

from skipway.weights.convert import adopt, release

__all__ = ["adopt", "release"]
