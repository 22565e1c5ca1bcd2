"""The meaning of a graph's outputs, one module a task."""
