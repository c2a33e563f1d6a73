"""C kernels and how they are built; the plain version always exists and gives the same result."""
