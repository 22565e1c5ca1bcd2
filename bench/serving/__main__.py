"""`python -m bench.serving`: this service beside its peers and the machine's limit."""

from bench.serving.comparison import main

main()
