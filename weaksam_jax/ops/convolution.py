"""Convolution with forms of its own for CPUs, where XLA is slow at two things: the gradient of the
kernel (a convolution with the whole map as its window) and few input channels.

Both are products of matrices there. Measured by `python -m experiments.bench --only convolution`.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

FEW = 64  # values that a kernel looks at: below it the forward pass is a product, too
_MAPS = ("NHWC", "HWIO", "NHWC")


class _How(NamedTuple):
    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    dilation: tuple[int, int]
    precision: str | None  # of products, as JAX names it


def convolution(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *,
    rhs_dilation: Sequence[int],
    precision: str | None = None,
    feature_group_count: int = 1,
    **same,
) -> jax.Array:
    """`jax.lax.conv_general_dilated` of x `[B, H, W, C]` and kernel `[k, l, C, F]`, float32 or
    bfloat16 -> `[B, H', W', F]`; `flax.linen.Conv` takes it as its `conv_general_dilated`.

    same: its other arguments, at the values that `flax.linen.Conv` gives them. With groups it is
    that function.
    """
    dilation = tuple(rhs_dilation)
    if feature_group_count > 1:
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            strides,
            padding,
            rhs_dilation=dilation,
            feature_group_count=feature_group_count,
            precision=precision,
            **same,
        )
    window = [(side - 1) * d + 1 for side, d in zip(kernel.shape[:2], dilation, strict=True)]
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:3], window, strides, padding)
    # Written down now: a gradient is traced later, when the detector's precision is out of sight.
    precision = precision or jax.config.jax_default_matmul_precision
    padding = tuple(map(tuple, padding))
    how = _How(tuple(strides), padding, dilation=dilation, precision=precision)
    return _convolve(x, kernel, how)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(x: jax.Array, kernel: jax.Array, how: _How) -> jax.Array:
    usual = functools.partial(_of_xla, how=how)
    if math.prod(kernel.shape[:3]) > FEW:
        return usual(x, kernel)
    product = functools.partial(_as_product, how=how)
    return jax.lax.platform_dependent(x, kernel, cpu=product, default=usual)


def _forward(x, kernel, how):
    return _convolve(x, kernel, how), (x, kernel)


def _backward(how, saved, grad):
    x, kernel = saved
    of_map = jax.vjp(lambda x: _of_xla(x, kernel, how), x)[1](grad)[0]
    product = functools.partial(_kernel_gradient, how=how, sides=kernel.shape[:2])

    def usual(x, grad):
        return jax.vjp(lambda kernel: _of_xla(x, kernel, how), kernel)[1](grad)[0]

    return of_map, jax.lax.platform_dependent(x, grad, cpu=product, default=usual)


_convolve.defvjp(_forward, _backward)


def _of_xla(x: jax.Array, kernel: jax.Array, how: _How) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        how.strides,
        how.padding,
        rhs_dilation=how.dilation,
        dimension_numbers=_MAPS,
        precision=how.precision,
    )


def _as_product(x: jax.Array, kernel: jax.Array, how: _How) -> jax.Array:
    """All cells that a place looks at side by side, times the kernel."""
    patches = jnp.concatenate(list(_seen(x, kernel.shape[:2], how)), -1)
    flat = kernel.reshape(-1, kernel.shape[-1])
    return jnp.einsum("bhwk,kf->bhwf", patches, flat, precision=how.precision)


def _kernel_gradient(x: jax.Array, grad: jax.Array, how: _How, sides: tuple[int, int]) -> jax.Array:
    """One product for each cell of the kernel: of what it saw with the gradient."""
    flat = grad.reshape(-1, grad.shape[-1])
    times = functools.partial(jnp.einsum, "nc,nf->cf", precision=how.precision)
    seen = (one.reshape(len(flat), -1) for one in _seen(x, sides, how))
    products = [times(one, flat, preferred_element_type=jnp.float32) for one in seen]
    return jnp.stack(products).reshape(*sides, x.shape[-1], -1).astype(grad.dtype)


def _seen(x: jax.Array, sides: tuple[int, int], how: _How) -> Iterator[jax.Array]:
    """What each cell of a kernel sees of x, `[B, H', W', C]`, row by row."""
    x = jnp.pad(x, ((0, 0), *how.padding, (0, 0)))
    reach = [(side - 1) * d for side, d in zip(sides, how.dilation, strict=True)]
    rows, columns = ((x.shape[1 + i] - reach[i] - 1) // how.strides[i] for i in (0, 1))
    for i in range(sides[0]):
        for j in range(sides[1]):
            top, left = i * how.dilation[0], j * how.dilation[1]
            yield x[
                :,
                top : top + rows * how.strides[0] + 1 : how.strides[0],
                left : left + columns * how.strides[1] + 1 : how.strides[1],
            ]
