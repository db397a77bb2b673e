"""Frozen networks in PyTorch: clues, prompts, SAM, export of arrays. Never imports jax."""
