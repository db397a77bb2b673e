"""float32 means float32: the golden numbers' discrete choices have margins of 1e-4."""

import jax
import pytest


@pytest.fixture(autouse=True)
def exact_products():
    with jax.default_matmul_precision("highest"):
        yield
