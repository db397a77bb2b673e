"""Precision of every detector's products: what the config says is what the program asks for."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_detectors import batch_of, detector_of, seen_at_test

from weaksam_jax.detectors import DETECTORS
from weaksam_jax.engine.precision import layer_dtype, products
from weaksam_jax.engine.step import keys_of
from weaksam_jax.errors import BadSetting
from weaksam_jax.settings import change

every_kind = pytest.mark.parametrize("kind", DETECTORS)
P = jax.sharding.PartitionSpec()
# A product in StableHLO: the types of both sides.
PRODUCT = re.compile(r"stablehlo\.(?:dot_general|convolution).*\(tensor<(\S+?)>, tensor<(\S+?)>\)")
ASKED = {"float32": "HIGHEST", "tf32": "HIGH", "bfloat16": "HIGHEST"}


def products_of(function, *args):
    """(element type, precisions asked for) of every product of a program. One that names the
    algorithm of bfloat16 (logits of attention: their sums are float32) is of bfloat16."""
    found = []
    for line in jax.jit(function).lower(*args).as_text().splitlines():
        if match := PRODUCT.search(line):
            asked = re.findall(r"\b(DEFAULT|HIGHEST|HIGH)\b", line)
            half = "lhs_precision_type = bf16, rhs_precision_type = bf16" in line
            element = "bf16" if half else match.group(1).split("x")[-1]
            found.append((element, tuple(asked) or ("DEFAULT",) * 2))
    return found


def gradient_of(detector):
    """Its loss and gradient, as a training step takes them."""

    def of(params, batch, key):
        keys = keys_of(key, len(batch["image"]))
        return jax.value_and_grad(detector.loss, has_aux=True)(params, batch, keys, 0)

    mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
    return jax.shard_map(of, mesh=mesh, in_specs=P, out_specs=P, check_vma=False)


@every_kind
@pytest.mark.parametrize("precision", ASKED)
def test_every_product_of_float32_arrays_asks_for_it(kind, precision):
    detector = detector_of(kind, model={"precision": precision})
    params = detector.shapes()
    trained = products_of(gradient_of(detector), params, batch_of(), jax.random.key(0))
    shown = products_of(detector.predict, params, seen_at_test(batch_of(), kind))
    for found in (trained, shown):
        asked = {precisions for element, precisions in found if element == "f32"}
        assert asked == {(ASKED[precision],) * 2}
        assert ("bf16" in {element for element, _ in found}) == (precision == "bfloat16")
    assert len(trained) > 2 * len(shown) > 8  # forward, and two gradients of most of them


def conv_and_dot(x, kernel, matrix):
    """A strided, dilated convolution, a matrix product, and the gradient through both."""

    def loss(x, kernel, matrix):
        dims = ("NHWC", "HWIO", "NHWC")
        more = {"rhs_dilation": (2, 2), "dimension_numbers": dims}
        y = jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", **more)
        return jnp.sum(jnp.tanh(y.reshape(y.shape[0], -1) @ matrix) ** 2)

    return jax.value_and_grad(loss, argnums=(0, 1, 2))(x, kernel, matrix)


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_on_a_cpu_it_is_to_the_bit_what_jax_computes_by_default(precision):
    rng = np.random.default_rng(0)
    shapes = ((3, 33, 47, 5), (3, 3, 5, 7), (17 * 24 * 7, 19))
    arrays = [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]
    default = jax.tree.leaves(jax.jit(conv_and_dot)(*arrays))
    with products(precision):
        ours = jax.tree.leaves(jax.jit(conv_and_dot)(*arrays))
    assert len(ours) == 4
    assert all(np.array_equal(one, two) for one, two in zip(ours, default, strict=True))


def test_layers_compute_in():
    kinds = {name: layer_dtype(name).name for name in ASKED}
    assert kinds == {"float32": "float32", "tf32": "float32", "bfloat16": "bfloat16"}


@every_kind
def test_another_precision_is_refused(kind):
    with pytest.raises(BadSetting, match=r"model.precision is 'fp8'.*float32, tf32, bfloat16"):
        change(DETECTORS[kind].Config(), {"model.precision": "fp8"})
