"""The service beside its peers and the limit of the machine."""
