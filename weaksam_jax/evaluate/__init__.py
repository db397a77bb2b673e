"""Metrics. The only consumer of truth besides the report."""
