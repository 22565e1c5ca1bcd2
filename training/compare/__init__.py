"""Models of a store side by side."""
