"""A finished run to an artifact."""
