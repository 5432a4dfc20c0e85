"""Adapters: the library, adapters between two others, and their similarity."""
