"""Loading SAM, batched prompts against SamPredictor, packed masks against plain ones."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask
from small_sam import blocky_image, small_sam

from bridge.sam import packed_masks
from bridge.sam.networks import MINI, load_sam
from bridge.sam.prompting import PromptedImage
from bridge.weights.fingerprints import weights_fingerprint
from weaksam_jax.errors import BadInput


def random_vit_b():
    from segment_anything import sam_model_registry

    with torch.device("meta"):
        shapes = {k: v.shape for k, v in sam_model_registry["vit_b"]().state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator).half() * 0.02
        for name, shape in shapes.items()
    }


def test_published_checkpoints_are_recognised_by_their_tensors(tmp_path):
    from segment_anything import sam_model_registry

    tensors, path = random_vit_b(), tmp_path / "weights.pth"
    torch.save(tensors, path)
    sam = load_sam(path)
    assert sam.image_encoder.img_size == 1024 and len(sam.image_encoder.blocks) == 12
    assert not sam.training and not any(p.requires_grad for p in sam.parameters())
    for name, value in sam.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, tensors[name].float()), name
    upstream = sam_model_registry["vit_b"]()
    for name, value in upstream.named_buffers():
        assert dict(sam.named_buffers())[name].shape == value.shape
    assert torch.equal(sam.pixel_mean, upstream.pixel_mean)
    assert torch.equal(sam.pixel_std, upstream.pixel_std)

    tensors["mask_decoder.iou_token.weight"] = torch.zeros(2, 256)
    torch.save(tensors, path)
    with pytest.raises(BadInput, match="iou_token"):
        load_sam(path)
    del tensors["mask_decoder.iou_token.weight"]
    torch.save(tensors, path)
    with pytest.raises(
        BadInput, match=r"missing: mask_decoder\.iou_token\.weight; taken for vit_b"
    ):
        load_sam(path)
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(BadInput, match=r"weights\.pth.*whole"):
        load_sam(path)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(BadInput, match="sam_mini"):
        load_sam("sam_huge")
    torch.save({"model": {"fc.weight": torch.zeros(2)}}, tmp_path / "other.pth")
    with pytest.raises(BadInput, match="no SAM of a published size"):
        load_sam(tmp_path / "other.pth")


@pytest.mark.parametrize("name", MINI)
def test_mini_sams_load_frozen(name):
    from bridge.sam.mini.model import weights_path

    if not weights_path(name).exists():
        pytest.skip(f"{weights_path(name)} is not there (not trained yet)")
    sam = load_sam(name)
    assert not sam.training and not any(p.requires_grad for p in sam.parameters())
    assert PromptedImage(sam, blocky_image(0, 60, 80)).decode(np.zeros((2, 1, 2)))[0].shape[1] == 3


def test_fingerprint_follows_the_weights():
    sam = small_sam(0)
    before = weights_fingerprint(sam)
    assert before == weights_fingerprint(small_sam(0)) != weights_fingerprint(small_sam(1))
    sam.mask_decoder.iou_token.weight.data[0, 0] += 1e-6
    assert weights_fingerprint(sam) != before


@pytest.mark.parametrize("multimask", [True, False])
def test_batched_prompts_are_the_predictors(multimask):
    from segment_anything import SamPredictor

    sam, image = small_sam(), blocky_image(1, 70, 110)
    rng = np.random.default_rng(2)
    points = rng.uniform(0, 70, (5, 3, 2))
    corner = rng.uniform(0, 50, (5, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 20, (5, 2))], 1)
    prompted, predictor = PromptedImage(sam, image), SamPredictor(sam)
    predictor.set_image(image)
    tokens = (1, 2, 3) if multimask else (0,)
    by_points = prompted.decode(points=points, tokens=tokens)
    by_boxes = prompted.decode(boxes=boxes, tokens=tokens)
    for i in range(5):
        asked = (
            {"point_coords": points[i], "point_labels": np.ones(3)},
            {"box": boxes[i]},
        )
        for (logits, iou), prompt in zip((by_points, by_boxes), asked, strict=True):
            full, expected_iou, low = predictor.predict(
                **prompt, multimask_output=multimask, return_logits=True
            )
            np.testing.assert_allclose(logits[i], low, rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(iou[i], expected_iou, rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(prompted.upsample(logits[i]), full, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 3000), (3000, 1), (1, 1)])
def test_images_of_which_nothing_would_be_left(shape):
    prompted = PromptedImage(small_sam(), blocky_image(1, *shape))
    height, width = shape
    logits, _ = prompted.decode(boxes=np.asarray([[0, 0, width - 1, height - 1]]), tokens=(0,))
    full = prompted.upsample(logits[:, 0])
    assert full.shape == (1, *shape) and torch.isfinite(full).all()


LOGITS = st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 19)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=st.sampled_from([-3.0, -0.5, 0.0, 0.5, 3.0]))
)


@settings(max_examples=60, deadline=None)
@given(LOGITS)
def test_packed_masks_are_the_plain_ones(logits):
    from segment_anything.utils.amg import batched_mask_to_box, calculate_stability_score

    tensor, width = torch.from_numpy(logits), logits.shape[-1]
    packed = packed_masks.pack_above(tensor, 0.0)
    masks = logits > 0
    np.testing.assert_array_equal(packed_masks.unpack(packed, width), masks)
    np.testing.assert_array_equal(packed_masks.pixel_counts(packed), masks.sum((1, 2)))
    filled = masks.any((1, 2))
    inclusive = batched_mask_to_box(torch.from_numpy(masks)).numpy()
    expected = np.where(filled[:, None], inclusive + np.asarray([0, 0, 1, 1]), 0)
    expected_stability = calculate_stability_score(tensor, 0.0, 1.0).numpy()
    for form in (packed_masks.measure_bits, packed_masks.measure_tensors):
        boxes, stability = form(tensor, 0.0, 1.0)
        assert boxes.dtype == stability.dtype == np.float32
        np.testing.assert_array_equal(boxes, expected)
        np.testing.assert_array_equal(stability, expected_stability)
    rles = packed_masks.encode_rle(packed, width)
    for rle, mask in zip(rles, masks, strict=True):
        decoded = coco_mask.decode({"size": list(mask.shape), "counts": rle})
        np.testing.assert_array_equal(decoded, mask)
    assert packed_masks.encode_rle_tensors(tensor > 0) == rles == packed_masks.rle_above(tensor, 0)
    assert packed_masks.encode_rle_tensors(tensor[:0] > 0) == ()
