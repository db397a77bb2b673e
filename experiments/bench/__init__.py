"""Side-by-side timings: our operations against alternatives in the same run."""
