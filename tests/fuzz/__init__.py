"""Mutated inputs through the real entry points; see `python -m tests.fuzz --help`."""
