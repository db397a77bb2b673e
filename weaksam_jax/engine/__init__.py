"""Training and detection of any detector: a step over a mesh, its loop, checkpoints, weights."""
