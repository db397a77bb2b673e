"""Timings: `python -m experiments.bench` and `python -m experiments.bench mil`."""
