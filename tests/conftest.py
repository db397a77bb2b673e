"""Tests run on the CPU; property tests have no deadline (the first example compiles)."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from hypothesis import settings

settings.register_profile("no deadline", deadline=None, derandomize=True)
settings.load_profile("no deadline")
