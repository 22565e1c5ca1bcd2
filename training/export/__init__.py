"""Export: from a finished run to an artifact."""
