"""Training loop, optimizers, schedules, losses, metrics and checkpoints. The function `skipway.train` is in `runs/`."""
