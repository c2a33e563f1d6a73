"""Largest sizes of images, for options and Specs; it imports nothing, so that `skipway --help` is fast."""

__all__ = ["MAX_PRESIZE", "MAX_SIZE"]

MAX_SIZE = 4096  # pixels per side; memory grows with its square, and a file could request any size
MAX_PRESIZE = 4710  # MAX_SIZE with the crop margin that training stores
