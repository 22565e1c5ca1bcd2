"""Engines that run the service on more than one machine. Each is an extra."""
