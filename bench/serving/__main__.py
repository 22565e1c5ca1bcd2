"""`python -m bench.serving`: this service beside its peers and the limit of the machine."""

from bench.serving.comparison import main

main()
