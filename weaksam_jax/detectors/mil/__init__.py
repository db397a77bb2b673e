"""Weakly supervised detection: the MIL detector, trained on tags and proposals."""
