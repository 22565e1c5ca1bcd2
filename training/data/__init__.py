"""Images to learn from: found, verified, split, augmented."""
