"""Training and detection of any detector: one step over a mesh, its loop, checkpoints and weights."""
