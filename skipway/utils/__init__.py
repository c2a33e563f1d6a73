"""Console, signals, allocator settings, atomic files, text."""
