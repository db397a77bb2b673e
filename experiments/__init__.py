"""Entry points and settings: the one place that knows both worlds."""
