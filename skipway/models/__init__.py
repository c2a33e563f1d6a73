"""Models: functions that return a tree of `Skip`s with the plan that rebuilds it."""
