"""skipway's room for data."""
