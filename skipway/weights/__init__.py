"""Weights of other libraries, in and out, and pretrained weights."""

from skipway.weights.convert import adopt, release

__all__ = ["adopt", "release"]
