"""Concrete DropBlock against PyTorch in two passes, as MIST's official code trains."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from weaksam_jax.detectors.mil import drop_block
from weaksam_jax.detectors.mil.drop_block import ConcreteDropBlock, gumbel, scaled_mask

B, N, K, CHANNELS = 2, 5, 7, 6
INIT = jax.jit(ConcreteDropBlock().init)


def case(seed):
    """Features, valid, parameters, and noise under which few centres are drawn, many nearly."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(B, N, K, K, CHANNELS)).astype(np.float32)
    valid = np.ones((B, N), bool)
    valid[0, 3:] = valid[1, 0] = False
    x[~valid] = 50  # would spoil the batch statistics
    params = INIT(jax.random.key(seed), x, valid)["params"]
    for norm in ("norm1", "norm2"):
        params[norm] = jax.tree.map(lambda p: p + rng.normal(size=p.shape) * 0.3, params[norm])
    share = torch_share(torch.tensor(x[valid]).double(), torch_parameters(params)).detach().numpy()
    margin = -rng.uniform(1e-3, 0.03, share.shape)
    margin[rng.random(share.shape) < 0.04] *= -1
    noise = np.zeros((B, N, K, K, 2), np.float32)
    noise[valid, ..., 1] = 0.5
    noise[valid, ..., 0] = margin - np.log(share / (1 - share)) + 0.5
    return x, valid, params, noise, 0.3 * rng.normal(size=x.shape).astype(np.float32)


def torch_parameters(params):
    """In PyTorch's layout, float64, with gradients."""

    def convert(leaf):
        leaf = np.asarray(leaf, np.float64)
        leaf = leaf.transpose(3, 2, 0, 1) if leaf.ndim == 4 else leaf
        return torch.tensor(np.ascontiguousarray(leaf), requires_grad=True)

    return jax.tree.map(convert, params)


def torch_share(rois, p):
    x = rois.permute(0, 3, 1, 2)

    def norm(y, one):
        return F.batch_norm(y, None, None, one["scale"], one["bias"], training=True)

    y = norm(F.conv2d(x, p["conv1"]["kernel"], padding=1), p["norm1"]).relu()
    y = norm(F.conv2d(y, p["conv2"]["kernel"], padding=1), p["norm2"])
    y = y + F.conv2d(x, p["shortcut"]["kernel"])
    return y[:, 0].sigmoid() * 0.3 / 9


def torch_dropped(rois, noise, p):
    """The valid RoIs `[R, k, k, C]` after the mask, one mask at a time."""
    share = torch_share(rois.detach(), p)
    masks = []
    for own, draw in zip(share, noise, strict=True):
        logits = torch.stack([own, 1 - own], -1)
        soft = F.softmax((torch.log(logits + 1e-10) + draw) / 0.01, -1)
        hard = F.one_hot(soft.argmax(-1), 2).double()
        centre = (hard + soft - soft.detach())[..., 0]
        # The straight-through sum is 1 up to rounding, which must not choose among equal centres.
        centre = centre + (hard[..., 0] - centre).detach()
        masks.append(1 - F.max_pool2d(centre[None], 3, 1, 1)[0])
    mask = torch.stack(masks)
    return rois * mask[..., None] * (mask.numel() / mask.sum()), mask


@pytest.mark.parametrize("seed", [0, 1])
def test_one_pass_equals_the_two_of_the_official_code(seed, monkeypatch):
    x, valid, params, noise, weights = case(seed)
    monkeypatch.setattr(drop_block, "gumbel", lambda key, shape: jnp.asarray(noise))
    model = ConcreteDropBlock()

    @jax.jit
    def loss(x, params):
        rngs = {"drop_block": jax.random.key(0)}
        y = model.apply({"params": params}, x, valid, True, rngs=rngs)
        return jnp.where(valid[..., None, None, None], jnp.tanh(y * weights), 0).sum(), y

    (value, y), (to_x, to_params) = jax.value_and_grad(loss, (0, 1), has_aux=True)(x, params)
    p, draws = torch_parameters(params), torch.tensor(noise[valid]).double()
    rois = torch.tensor(x[valid], dtype=torch.float64, requires_grad=True)
    factor = torch.tensor(weights[valid]).double()
    dropped, mask = torch_dropped(rois, draws, p)
    assert 0 < (1 - mask).sum() < mask.numel()
    np.testing.assert_allclose(y[valid], dropped.detach(), atol=1e-5)
    # Pass A: the detector descends, the mask is a constant.
    total = (dropped * factor).tanh().sum()
    total.backward()
    np.testing.assert_allclose(value, total.item(), atol=1e-4)
    np.testing.assert_allclose(to_x[valid], rois.grad, rtol=1e-4, atol=1e-5)
    assert not to_x[~valid].any()
    # Pass B: the same forward, the mask network descends on -0.01 times the loss.
    p = torch_parameters(params)
    dropped, _ = torch_dropped(rois.detach(), draws, p)
    (-0.01 * (dropped * factor).tanh().sum()).backward()
    for (path, ours), theirs in zip(
        jax.tree_util.tree_leaves_with_path(to_params), jax.tree.leaves(p), strict=True
    ):
        grad = theirs.grad.permute(2, 3, 1, 0) if theirs.ndim == 4 else theirs.grad
        size = float(grad.abs().max())
        assert size > 1e-4, path
        np.testing.assert_allclose(ours, grad, atol=0.01 * size, err_msg=str(path))


def test_inference_is_the_identity_and_training_draws_anew():
    x, valid, params, *_ = case(3)
    model = ConcreteDropBlock()
    assert model.apply({"params": params}, x, valid, False) is x
    run = jax.jit(
        lambda key: model.apply({"params": params}, x, valid, True, rngs={"drop_block": key})
    )
    # 0.033 x 490 cells at most are centres: by ten draws some are.
    draws = [np.asarray(run(jax.random.key(i))) for i in range(10)]
    assert len({one.tobytes() for one in draws}) > 5
    np.testing.assert_array_equal(draws[0], run(jax.random.key(0)))
    for one in draws:  # what is left is scaled so that the expected sum stays
        kept = (one != 0)[valid].mean()
        np.testing.assert_allclose(one[one != 0], (x / kept)[one != 0], rtol=1e-4)


def test_blocks_are_drawn_as_often_as_their_probability_says():
    share = jnp.full((1, 1, 1, 1), 0.03)

    def dropped(key):
        return scaled_mask(share, gumbel(key, (1, 1, 1, 1, 2)), jnp.ones((1, 1), bool)) == 0

    rate = jax.vmap(dropped)(jax.random.split(jax.random.key(0), 100_000)).mean()
    assert abs(rate - 0.03) < 0.002  # the standard error is 0.0005
    extremes = jnp.asarray([0.0, 1e-45, 0.5, 1 - 6e-8])
    assert np.isfinite(-jnp.log(-jnp.log(extremes + 1e-10) + 1e-10)).all()


@pytest.mark.parametrize("empty", ["no proposals", "everything dropped"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_empty_and_huge_inputs_stay_finite(empty, dtype, monkeypatch):
    x, valid, params, noise, _ = case(4)
    if empty == "no proposals":
        valid = np.zeros_like(valid)
    else:
        noise[..., 0] = 1e3
    x = jnp.asarray(x * 1e4, dtype)
    monkeypatch.setattr(drop_block, "gumbel", lambda key, shape: jnp.asarray(noise))

    def loss(x, params):
        rngs = {"drop_block": jax.random.key(0)}
        y = ConcreteDropBlock(dtype).apply({"params": params}, x, valid, True, rngs=rngs)
        return y.astype(jnp.float32).sum()

    value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(x, params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((value, gradients)))
    assert empty == "no proposals" or value == 0


def test_half_precision_features_keep_their_type():
    x, valid, params, *_ = case(5)
    rngs = {"drop_block": jax.random.key(1)}
    run = jax.jit(
        lambda x: ConcreteDropBlock().apply({"params": params}, x, valid, True, rngs=rngs)
    )
    assert run(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
