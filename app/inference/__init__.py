"""Queues and runtimes."""
