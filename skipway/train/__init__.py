"""skipway's room for train."""
