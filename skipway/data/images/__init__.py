"""Image data: decode cache, splits, augmentation and batches."""
