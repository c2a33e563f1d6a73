"""CPU kernels, in C or as a matrix product, with their compilation and dispatch. Each has an equal plain version."""
