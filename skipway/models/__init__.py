"""skipway's room for models."""
