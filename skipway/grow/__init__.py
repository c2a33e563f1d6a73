"""Growth: make a trained network deeper or wider without changing its outputs, and carry over the optimizer state."""

from skipway.grow.deepening import Growth, deepen, widen

__all__ = ["Growth", "deepen", "widen"]
