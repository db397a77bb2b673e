"""Tests run on the CPU; property tests have no deadline (the first example compiles)."""

import os
import signal

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from hypothesis import settings

settings.register_profile("no deadline", deadline=None, derandomize=True)
settings.load_profile("no deadline")
# A suite that was started in the background ignores SIGINT, and so would the programs it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
