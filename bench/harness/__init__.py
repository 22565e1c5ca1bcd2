"""Parts that all benchmarks share: processes, requests, load, payloads, environments, results."""
