"""Logs and metrics."""

METRICS_DIRECTORY_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""The environment variable with the directory in which several processes keep their metrics."""
