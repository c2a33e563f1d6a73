"""Models: functions that build a tree of `Skip`s from a plan, and the registry of their names."""
