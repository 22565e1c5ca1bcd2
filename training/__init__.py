"""Offline training, evaluation and export."""
