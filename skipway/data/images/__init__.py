"""Images: decode cache, split, augmentation, batches."""
