"""What many machines would do, from what one does: `python -m bench.scaling`."""
