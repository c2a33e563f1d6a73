"""Data loading: resolve DATA, decode images, read tables, split samples and build batches."""
