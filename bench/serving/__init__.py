"""The service beside its peers and the machine's limit; under overload; for a long time."""
