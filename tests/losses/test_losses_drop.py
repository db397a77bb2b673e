"""RoI drop against a NumPy loop; gradients through the mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from weaksam_jax.detectors.faster_rcnn.config import DropConfig
from weaksam_jax.detectors.faster_rcnn.loss import RoiLosses, dropped_sums, roi_objective
from weaksam_jax.losses.drop import query_drop, roi_drop


def loop_keep(cls_loss, reg_loss, foreground, valid, tau_cls, tau_reg, rule, drop_background):
    """Equation 1, one RoI at a time."""
    keep = []
    for c, r, fg, ok in zip(cls_loss, reg_loss, foreground, valid, strict=True):
        r = r if fg else 0.0
        if rule == "either":
            kept = c <= tau_cls and r <= tau_reg
        else:
            kept = not (c > tau_cls and r > tau_reg)
        if not fg and not drop_background:
            kept = True
        keep.append(bool(ok and kept))
    return np.array(keep)


def random_rois(seed, count=200):
    rng = np.random.default_rng(seed)
    cls_loss = rng.uniform(0, 8, count).astype(np.float32)
    reg_loss = rng.uniform(0, 2, count).astype(np.float32)
    cls_loss[:20] = 4.0  # exactly at the threshold: kept
    reg_loss[10:30] = 1.0
    return cls_loss, reg_loss, rng.random(count) < 0.5, rng.random(count) < 0.9


@pytest.mark.parametrize("rule", ["either", "both"])
@pytest.mark.parametrize("drop_background", [True, False])
def test_roi_drop_is_equation_1(rule, drop_background):
    rois = random_rois(0)
    keep = roi_drop(*rois, 4.0, 1.0, rule=rule, drop_background=drop_background)
    expected = loop_keep(*rois, 4.0, 1.0, rule, drop_background)
    assert 0 < expected.sum() < rois[3].sum()
    np.testing.assert_array_equal(keep, expected)
    assert keep.dtype == bool


def test_rules_differ_where_they_should():
    cls_loss, reg_loss = np.array([5.0, 1.0, 5.0, 5.0]), np.array([0.5, 2.0, 2.0, 9.0])
    foreground, valid = np.array([True, True, True, False]), np.ones(4, bool)
    either = roi_drop(cls_loss, reg_loss, foreground, valid, 4.0, 1.0)
    both = roi_drop(cls_loss, reg_loss, foreground, valid, 4.0, 1.0, rule="both")
    np.testing.assert_array_equal(either, [False, False, False, False])
    np.testing.assert_array_equal(both, [True, True, False, True])
    spared = roi_drop(cls_loss, reg_loss, foreground, valid, 4.0, 1.0, drop_background=False)
    np.testing.assert_array_equal(spared, [False, False, False, True])
    with pytest.raises(ValueError, match="either"):
        roi_drop(cls_loss, reg_loss, foreground, valid, 4.0, 1.0, rule="or")


@pytest.mark.parametrize("normaliser", ["n_valid", "n_kept"])
def test_objective_and_its_gradient_are_equation_2(normaliser):
    cls_loss, reg_loss, foreground, valid = random_rois(1)
    drop = DropConfig(4.0, 1.0, start=10, normaliser=normaliser)

    def total(cls_loss, reg_loss, step):
        rois = RoiLosses(cls_loss, reg_loss, foreground, valid)
        terms, metrics = roi_objective(rois, step=step, drop=drop)
        return terms["cls"] + terms["box"], metrics

    keep = loop_keep(cls_loss, reg_loss, foreground, valid, 4.0, 1.0, "either", True)
    for step, d in ((10, keep), (9, valid)):
        count = valid.sum() if normaliser == "n_valid" else d.sum()
        (value, metrics), grads = jax.value_and_grad(total, (0, 1), has_aux=True)(
            jnp.asarray(cls_loss), jnp.asarray(reg_loss), jnp.int32(step)
        )
        expected = (d * cls_loss).sum() + (d * foreground * reg_loss).sum()
        np.testing.assert_allclose(value, expected / count, rtol=1e-6)
        np.testing.assert_allclose(grads[0], d / count, rtol=1e-6)
        np.testing.assert_allclose(grads[1], d * foreground / count, rtol=1e-6)
        share = 1 - (d & foreground).sum() / (valid & foreground).sum()
        np.testing.assert_allclose(metrics["dropped_foreground"], share, rtol=1e-5)
        share = 1 - (d & ~foreground).sum() / (valid & ~foreground).sum()
        np.testing.assert_allclose(metrics["dropped_background"], share, rtol=1e-5)


def test_no_drop_config_means_no_drop_and_no_shares():
    rois = random_rois(2)
    terms, metrics = roi_objective(RoiLosses(*rois), step=jnp.int32(10**6), drop=None)
    cls_loss, _, _, valid = rois
    np.testing.assert_allclose(terms["cls"], cls_loss[valid].mean(), rtol=1e-6)
    assert "dropped_foreground" not in metrics


def test_a_loss_that_is_not_finite_is_not_hidden_by_dropping():
    one = jnp.ones(2)
    rois = RoiLosses(one.at[0].set(jnp.nan), one, one > 0, one > 0)
    sums = dropped_sums(rois, active=jnp.bool_(True), drop=DropConfig())
    assert jnp.isnan(sums["cls"])


def test_no_gradient_through_the_mask():
    loss = jnp.linspace(0.0, 6.0, 20)
    yes = jnp.ones(20, bool)

    def kept(x):
        return jnp.sum(roi_drop(x, x, yes, yes, 4.0, 1.0) * 1.0 * jax.lax.stop_gradient(x))

    np.testing.assert_array_equal(jax.grad(kept)(loss), np.zeros(20))


def test_both_drops_stand_beside_one_another():
    """Of 20 matched queries the two of largest loss go; without a percentile it is 90."""
    loss, matched = np.arange(30.0), np.arange(30) < 20
    keep = query_drop(cls_loss=loss, matched=matched)
    np.testing.assert_array_equal(np.flatnonzero(~keep), [18, 19])
    assert np.flatnonzero(~query_drop(loss, matched, percentile=95)).tolist() == [19]
