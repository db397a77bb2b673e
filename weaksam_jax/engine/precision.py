"""Precision of convolutions and matrix products: the one place that says what its names mean.

| precision | layers compute in | a product of float32 arrays on a TPU | on a GPU | on a CPU |
|---|---|---|---|---|
| float32 | float32 | six passes of bfloat16 | float32 | float32 |
| tf32 | float32 | three passes of bfloat16 | TF32 (10 bits of mantissa) | float32 |
| bfloat16 | bfloat16 | as float32 | as float32 | as float32 |

JAX's own default is none of them: one pass of bfloat16 on a TPU, TF32 on a GPU. Parameters, losses
and box algebra are float32 in all; with bfloat16 the products of float32 arrays are those outside
of the layers, such as the layers that score.
"""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Literal, TypeVar

import jax
import jax.numpy as jnp

Precision = Literal["float32", "tf32", "bfloat16"]
# Of products of float32 arrays, in JAX's words.
_PRODUCTS = {"float32": "float32", "tf32": "tensorfloat32", "bfloat16": "float32"}
Method = TypeVar("Method", bound=Callable)


def layer_dtype(precision: Precision) -> jnp.dtype:
    """What the layers of a network compute in."""
    return jnp.dtype(jnp.bfloat16 if precision == "bfloat16" else jnp.float32)


def products(precision: Precision) -> AbstractContextManager:
    """While it lasts, traced products of float32 arrays have this precision (and so have their
    gradients, but for those of a `jax.custom_vjp`, which is traced later)."""
    return jax.default_matmul_precision(_PRODUCTS[precision])


def precise(method: Method) -> Method:
    """A detector's method that computes in `self.config.model.precision`, whoever traces it."""

    @functools.wraps(method)
    def run(self, *args, **more):
        with products(self.config.model.precision):
            return method(self, *args, **more)

    return run
