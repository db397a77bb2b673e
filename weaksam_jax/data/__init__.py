"""Data sets, records and stores in plain NumPy; imports neither jax nor torch."""
