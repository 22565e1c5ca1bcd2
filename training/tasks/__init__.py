"""The loss and the metrics of each task, one module a task."""
