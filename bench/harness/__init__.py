"""Load generators, processes, environments and results."""
