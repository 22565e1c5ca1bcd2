"""Faster arithmetic for some layers; networks give the same without it."""
