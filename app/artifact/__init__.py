"""A model directory: what training hands to the service, and the proof that it is sound."""
