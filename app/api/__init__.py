"""HTTP: resources, bodies, negotiation and errors."""
