"""Growth: deeper and wider networks with the same outputs, and their optimizer states."""

from skipway.grow.deepening import Growth, deepen, widen

__all__ = ["Growth", "deepen", "widen"]
