"""MCTformer-V2 against the step-by-step form: seeds of the last layers, affinity of all."""

import numpy as np
import pytest
import torch
from plain_weaktr import published_state, slow_weaktr

from bridge.clues.mctformer import load_mctformer
from bridge.clues.weaktr import WeakTrClues
from bridge.weights.fingerprints import network_fingerprint
from weaksam_jax.errors import BadInput

SMALL = {"classes": 5, "dim": 256, "heads": 4, "depth": 4}


def bare(**sizes) -> dict:
    return published_state(fusion="uniform", **sizes)


@pytest.mark.parametrize("last_layers", [1, 3, 9])
def test_forward_equals_the_slow_form(tmp_path, last_layers):
    state = bare(**SMALL)
    prefixed = {f"module.{name}": value for name, value in state.items()}
    torch.save({"model": prefixed}, tmp_path / "mct.pth")
    image = torch.randn(1, 3, 75, 131, generator=torch.Generator().manual_seed(1))
    view = load_mctformer(tmp_path / "mct.pth", last_layers)(image)
    for name, value in slow_weaktr(state, image, 4, last_layers=last_layers).items():
        found = getattr(view, name)
        assert found.shape == value.shape, name
        assert (found - value).abs().max() < 1e-4 * value.abs().max(), name


def test_full_size_clues(tmp_path):
    """DeiT-S, 20 classes: maps of one scale, with the mirrored twin, against the slow form."""
    state = bare()
    torch.save(state, tmp_path / "mct.pth")
    network = WeakTrClues(load_mctformer(tmp_path / "mct.pth"), tta_scales=(1.0,))
    image = np.random.default_rng(0).integers(0, 256, (50, 83, 3), dtype=np.uint8)
    clues = network(image, (7, 2))
    assert clues.class_ids.tolist() == [2, 7] and clues.cross.shape == (12, 2, 50, 83)
    mean, std = np.asarray([0.485, 0.456, 0.406]), np.asarray([0.229, 0.224, 0.225])
    total = 0
    for twin in (image, image[:, ::-1]):
        pixels = torch.tensor((twin / 255 - mean) / std).permute(2, 0, 1)[None]
        fine = slow_weaktr(state, pixels, last_layers=3)["fine"][None, [2, 7]]
        up = torch.nn.functional.interpolate(fine, size=(50, 83), mode="bilinear")[0]
        total = total + (up if twin is image else up.flip(-1)).numpy()
    low, high = total.min((1, 2), keepdims=True), total.max((1, 2), keepdims=True)
    np.testing.assert_allclose(clues.fine, (total - low) / (high - low), atol=1e-4)
    other = WeakTrClues(load_mctformer(tmp_path / "mct.pth", 1), tta_scales=(1.0,))
    assert network_fingerprint(other) != network_fingerprint(network)


def test_mismatches_are_named(tmp_path):
    state = bare(**SMALL)
    for name, change, told in (
        ("lacking", {"head.bias": None}, r"missing: head\.bias"),
        ("more", {"pos_embed_cls": torch.zeros(1, 5, 256)}, r"not known: pos_embed_cls"),
        ("deit", {"head.weight": torch.zeros(1000, 256)}, r"head\.weight \(1000, 256\) instead"),
        ("other", {"cls_token": None}, "no MCTformer-V2 checkpoint"),
        ("weaktr", published_state(**SMALL), "not known: adaptive_attention_fusion"),
    ):
        changed = {key: value for key, value in (state | change).items() if value is not None}
        torch.save(changed, tmp_path / f"{name}.pth")
        with pytest.raises(BadInput, match=rf"{name}\.pth.*{told}"):
            load_mctformer(tmp_path / f"{name}.pth")
