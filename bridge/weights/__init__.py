"""Published weights: reading checkpoints safely, and their names and layouts as ours."""
