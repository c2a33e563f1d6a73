"""Training: the loop, what it needs, and checkpoints. (Not `train`, which is what `skipway.train` does.)"""
