"""Console, signals, devices, allocator settings, atomic files, text."""
