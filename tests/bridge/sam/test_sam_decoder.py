"""The decoder that shares work between prompts against segment_anything's own."""

import numpy as np
import pytest
import torch
from small_sam import blocky_image, small_sam

import bridge.runtime.torchvision_ops  # noqa: F401

# isort: split
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer

from bridge.sam import decoder as sam_decoder
from bridge.sam.decoder import ImageDecoder, can_share
from bridge.sam.networks import load_sam
from bridge.sam.prompting import PromptedImage


@pytest.fixture(scope="module")
def published_size():
    """Prompt encoder and decoder at the size that ViT-B, L and H share; an image embedding."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8)
        decoder = MaskDecoder(transformer_dim=256, transformer=transformer)
        encoder = PromptEncoder(256, (64, 64), (1024, 1024), mask_in_chans=16)
        for name, parameter in decoder.named_parameters():
            if "bias" in name:  # zeros in a new network: none may be forgotten
                parameter.data.normal_(std=0.3)
            elif parameter.ndim > 1:  # attention that is not uniform, masks that are not flat
                parameter.data.mul_(1.5)
        embedding = torch.randn(1, 256, 64, 64)
    for module in (decoder, encoder):
        module.eval().requires_grad_(False)
    return encoder, decoder, embedding


def both(parts, sparse, dense, tokens):
    encoder, decoder, embedding = parts
    position = encoder.get_dense_pe()
    shared = ImageDecoder(decoder, embedding, position, dense[:1])
    theirs = decoder(embedding, position, sparse, dense, multimask_output=tokens != (0,))
    return shared(sparse, tokens), theirs


@pytest.mark.parametrize("count, points", [(3, 1), (2, 4), (1, 20)])
def test_points_are_decoded_as_by_segment_anything(published_size, count, points):
    generator = torch.Generator().manual_seed(points)
    places = torch.rand(count, points, 2, generator=generator) * 1024
    labels = torch.ones(count, points)
    sparse, dense = published_size[0]((places, labels), None, None)
    ours, theirs = both(published_size, sparse, dense, (1, 2, 3))
    for found, expected, tolerance in zip(ours, theirs, (1e-4, 1e-5), strict=True):
        assert found.shape == expected.shape and expected.std() > 0.05
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def test_boxes_and_the_single_mask(published_size):
    boxes = torch.tensor([[10.0, 20, 300, 700], [500, 5, 1000, 64]])
    sparse, dense = published_size[0](None, boxes, None)
    ours, theirs = both(published_size, sparse, dense, (0,))
    torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(ours[1], theirs[1], rtol=0, atol=1e-5)


def test_any_mask_tokens_in_any_order():
    prompted = PromptedImage(small_sam(), blocky_image(0, 60, 80))
    points = np.asarray([[[5.0, 9]], [[40, 30]]])
    logits, predicted_iou = prompted.decode(points, tokens=(0, 1, 2, 3))
    some, some_iou = prompted.decode(points, tokens=(3, 1))
    torch.testing.assert_close(some, logits[:, [3, 1]])
    torch.testing.assert_close(some_iou, predicted_iou[:, [3, 1]])


def test_parts_bound_the_memory_and_change_nothing(monkeypatch):
    prompted = PromptedImage(small_sam(), blocky_image(0, 60, 80))
    points = np.random.default_rng(0).uniform(0, 60, (7, 1, 2))
    whole = prompted.decode(points)
    sizes = []
    run = ImageDecoder._decode

    def seen(self, sparse, tokens):
        sizes.append(len(sparse))
        return run(self, sparse, tokens)

    monkeypatch.setattr(ImageDecoder, "_decode", seen)
    budget = 3 * 2 * prompted.shared.keys.numel()
    monkeypatch.setattr(sam_decoder, "numbers_at_once", lambda device: budget)
    parts = prompted.decode(points)
    assert sizes == [3, 3, 1]
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


def test_subclasses_keep_their_own_decoder():
    assert can_share(small_sam())
    mini = load_sam("sam_mini")
    assert not can_share(mini)
    prompted = PromptedImage(mini, blocky_image(0, 60, 80))
    assert prompted.shared is None
    logits, predicted_iou = prompted.decode(np.asarray([[[5.0, 9]]]), tokens=(0, 2))
    assert logits.shape[:2] == predicted_iou.shape == (1, 2)
