"""`python -m bench.training exercise`, `python -m bench.training speednet`."""

from bench.training.cli import main

main()
