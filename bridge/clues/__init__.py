"""Clue networks: class maps and attention maps of an image from networks trained on tags."""
