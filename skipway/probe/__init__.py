"""skipway's room for probe."""
