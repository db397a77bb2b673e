"""One functional train step over a mesh, its loop and its checkpoints."""
