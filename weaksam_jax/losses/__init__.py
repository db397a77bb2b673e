"""Losses and mining rules as pure functions."""
