"""The network against mmdetection's DINO on seeded weights, stage by stage, to 1e-4."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_dino import (
    CLASSES,
    DENOISING,
    MODEL,
    PADDED,
    SIZE,
    batch_of,
    close,
    golden,
    is_whole,
    levels_of,
    need,
    noise_of,
    of_case,
    our_gradients,
    our_names,
    params_of,
)
from plain_dino_loss import all_terms

from weaksam_jax.backbones import BACKBONES
from weaksam_jax.backbones.pixels import network_input
from weaksam_jax.detectors.dino.config import TestConfig as TestOptions
from weaksam_jax.detectors.dino.decoder import Memory, box_code
from weaksam_jax.detectors.dino.denoising import denoising_slots, slot_count, visible_queries
from weaksam_jax.detectors.dino.model import DinoNetwork
from weaksam_jax.detectors.dino.positions import (
    grid_proposals,
    image_extent,
    level_of_token,
    reference_points,
    token_codes,
)
from weaksam_jax.detectors.dino.predict import select_detections
from weaksam_jax.engine.weights import flatten

SHAPES = ((12, 16), (6, 8), (3, 4), (2, 2))
CASES = ("g35", "g05", "g00")
NETWORK = DinoNetwork(BACKBONES["resnet50"].pyramid(width=8), CLASSES, MODEL)
SLOTS = jax.jit(functools.partial(denoising_slots, config=DENOISING))
OBJECTS = 9  # per image in a batch, padded: more than the golden's 5


def padded(batch, objects):
    """The batch with so many places for objects."""
    room = objects - batch["boxes"].shape[1]
    more = {name: np.pad(batch[name], ((0, 0), (0, room))) for name in ("labels", "valid")}
    return batch | more | {"boxes": np.pad(batch["boxes"], ((0, 0), (0, room), (0, 0)))}


def slots_of(case, objects=OBJECTS):
    """The denoising slots of a case with its recorded draws."""
    batch = padded(batch_of(case), max(objects, case["gt.labels"].shape[1]))
    count = slot_count(batch["boxes"].shape[1], DENOISING)
    if "dn.noise_p" not in case:  # no objects: nothing was drawn
        empty = {"p": 2, "new_label": 2, "sign01": 3, "part01": 3}
        case = {f"dn.noise_{k}": np.zeros((2, 0, 2, 5, 4)[: n + 2]) for k, n in empty.items()}
        case["dn.noise_new_label"] = case["dn.noise_new_label"].astype(int)
    return SLOTS(batch, noise_of(case, count))


@functools.cache
def trained(case):
    """`TrainingOutputs` of a case."""
    run = jax.jit(
        lambda params, slots: NETWORK.apply(
            {"params": params}, levels_of(golden("transformer")), SIZE, PADDED,
            slots=slots, method="train_levels",
        )
    )  # fmt: skip
    return jax.device_get(run(params_of("transformer"), slots_of(of_case("transformer", case))))


@jax.jit
def placed(boxes):
    """All that `positions` gives for the golden's images, and codes of boxes in them."""
    extent = image_extent(SIZE, PADDED, SHAPES)
    codes, share = token_codes(extent, 64, 20.0), jnp.tile(extent.ratios()[:, :1], 2)
    of_grid = grid_proposals(extent, SHAPES)
    return (
        (extent.valid(), extent.ratios(), *of_grid),
        (codes, reference_points(extent, SHAPES), box_code(boxes * share, 64)),
    )


def test_positions_and_masks_are_the_references():
    case = of_case("transformer", "g35")
    (valid, ratios, logits, usable), others = jax.device_get(placed(case["dec_in.reference"]))
    np.testing.assert_array_equal(valid, ~case["pre.feat_mask"])
    close(ratios, case["pre.valid_ratios"], 1e-7)
    theirs = case["two_stage.proposals_unact"]
    assert 0 < usable.sum() < usable.size
    np.testing.assert_array_equal(np.isfinite(logits), np.isfinite(theirs))
    np.testing.assert_array_equal(usable, np.isfinite(theirs).all(-1))
    close(logits[usable], theirs[usable], 1e-6)
    need(case, "pre.feat_pos")
    embed = golden("transformer")["w.level_embed"][level_of_token(SHAPES)]
    close(others[0] + embed, case["pre.feat_pos"], 1e-6)
    close(others[1], case["enc_ref_points"], 1e-6)
    close(others[2], case["dec0.query_sine"], 1e-6)


@pytest.mark.parametrize("part", ["transformer", "model"])
def test_padding_of_odd_sizes_is_the_references(part):
    case, arrays = of_case(part, "odd.eval"), golden(part)
    need(case, "pre.feat_mask")
    sizes, canvas = arrays["odd.img_shapes_hw"], tuple(arrays["odd.canvas_hw"].tolist())
    shapes = tuple(case[f"neck.out{i}"].shape[2:] for i in range(4))
    extent = image_extent(sizes, canvas, shapes)
    np.testing.assert_array_equal(extent.valid(), ~case["pre.feat_mask"])
    close(extent.ratios(), case["pre.valid_ratios"], 1e-7)


@pytest.mark.parametrize("name", CASES)
def test_denoising_slots_are_the_references(name):
    """In their number; the others are seen by nobody."""
    case = of_case("transformer", name)
    slots, used = slots_of(case), int(case["dn.num_queries"])
    assert slots.labels.shape == (2, 200) and used in (0, 200)
    assert bool(slots.targets.valid[:, :used].all()) and not slots.targets.valid[:, used:].any()
    close(slots.boxes[:, :used], case["dec_in.reference"][:, :used]) if used else None
    visible = np.asarray(jax.jit(visible_queries, static_argnums=1)(slots, 50))
    rows = np.r_[:used, 200:250]
    for image in range(2):
        seen = visible[image][np.ix_(rows, rows)]
        np.testing.assert_array_equal(~seen, case["dn.attn_mask"])
    assert not visible[:, rows][:, :, used:200].any()
    if used:
        labels = np.where(slots.filled, slots.labels, -1)
        np.testing.assert_array_equal(labels, case["dn.noisy_label"])


@pytest.mark.parametrize("name", CASES)
def test_memory_proposals_logits_and_boxes_are_the_references(name):
    case = of_case("transformer", name)
    need(case, "head.cls")
    ours = trained(name)
    used = int(case["dn.num_queries"])
    close(ours.encoder_logits, case["two_stage.topk_cls"])
    close(ours.encoder_boxes, case["two_stage.topk_boxes"])
    logits, boxes = case["head.cls"], case["head.boxes"]
    close(ours.logits, logits[:, :, used:])
    close(ours.boxes, boxes[:, :, used:])
    if used:
        close(ours.denoising_logits, logits[:, :, :used])
        close(ours.denoising_boxes, boxes[:, :, :used])
    # a wrong epsilon of the inverse sigmoid moves boxes by 9e-4 of all
    assert np.abs(ours.boxes - boxes[:, :, used:]).max() < 1e-5


@jax.jit
def staged(params, slots, memory_of_theirs):
    """(memory, proposals, queries, what the encoder's and the decoder's modules give)."""
    levels = levels_of(golden("transformer"))

    def apply(*inputs, method):
        how = {"capture_intermediates": True, "mutable": ["intermediates"], "method": method}
        found, state = NETWORK.apply({"params": params}, *inputs, **how)
        return found, state.get("intermediates", {})

    memory, encoded = apply(levels, SIZE, PADDED, method="encode")
    proposals, _ = apply(memory, levels, method="propose")
    queries, _ = apply(proposals, method="matching_queries")
    queries, _ = apply(queries, slots, method="with_slots")
    given = Memory(memory_of_theirs, memory.extent)
    _, decoded = apply(queries, given, levels, method="decode")
    return memory.tokens, proposals, queries, encoded["encoder"], decoded["decoder"]


def test_every_stage_is_the_references():
    case = of_case("transformer", "g35")
    need(case, "hidden_states", "enc0.out", "references")
    slots = slots_of(case)
    found = jax.device_get(staged(params_of("transformer"), slots, case["memory"]))
    memory, proposals, queries, encoder, decoder = found
    close(memory, case["memory"])
    np.testing.assert_array_equal(proposals.tokens, case["two_stage.topk_index"])
    close(queries.content, case["dec_in.query"])
    close(queries.boxes, case["dec_in.reference"])
    hidden, starts = decoder["__call__"][0]
    close(hidden, case["hidden_states"])
    close(starts, case["references"][:2])
    for i in range(2):
        close(encoder[f"layer{i}"]["__call__"][0], case[f"enc{i}.out"])
        close(decoder[f"layer{i}"]["__call__"][0], case[f"dec{i}.out_prenorm"])
        close(decoder["ref_point_head"]["__call__"][i], case[f"dec{i}.query_pos"])


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_are_the_references(name):
    """With the recorded assignment, so that they prove the network alone: all stop-gradients."""
    case = of_case("transformer", name)
    slots, batch = jax.device_get(slots_of(case)), padded(batch_of(case), OBJECTS)

    def loss(params, levels):
        run = NETWORK.apply
        ours = run({"params": params}, levels, SIZE, PADDED, slots=slots, method="train_levels")
        ours = ours._replace(denoising_targets=slots.targets)
        terms = all_terms(ours, batch, case["match.gt_inds"])
        return sum(terms.values()), terms

    params, levels = params_of("transformer"), levels_of(golden("transformer"))
    grads, terms = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(params, levels)
    for term, value in terms.items():
        np.testing.assert_allclose(value, case[f"loss.{term}"], rtol=1e-4, err_msg=term)
    theirs = {k.removeprefix("grad."): v for k, v in case.items() if k.startswith("grad.")}
    theirs, ours = our_names(theirs), flatten(grads[0])
    if is_whole("transformer"):
        assert theirs and (name != "g35" or theirs.keys() == ours.keys())
        theirs |= {f"level{i}": case[f"grad_feat{i}"] for i in range(4)}
    ours |= {f"level{i}": one.transpose(0, 3, 1, 2) for i, one in enumerate(grads[1])}
    for key, value in theirs.items():
        if key.endswith("key/bias"):  # it moves all logits of a softmax alike: rounding errors
            assert max(np.abs(value).max(), np.abs(ours[key]).max()) < 1e-6
        else:
            close(ours[key], value)


def test_detections_are_the_references():
    case = of_case("transformer", "eval")
    run = jax.jit(
        lambda params: NETWORK.apply(
            {"params": params}, levels_of(golden("transformer")), SIZE, PADDED,
            method="detect_levels",
        )
    )  # fmt: skip
    ours = run(params_of("transformer"))
    close(ours.logits, case["head.cls"])
    close(ours.boxes, case["head.boxes"])
    select = functools.partial(select_detections, config=TestOptions(max_detections=30))
    found = jax.vmap(select)(ours.logits[-1], ours.boxes[-1], jnp.asarray(SIZE))
    np.testing.assert_array_equal(found.labels, case["det.labels"])
    close(found.scores, case["det.scores"])
    close(found.boxes, case["det.bboxes"])
    assert bool(found.valid.all())


def pixels_of(sizes, padded):
    """The golden's images, uint8 `[2, *padded, 3]`."""
    images = np.zeros((2, *padded, 3), np.uint8)
    for i, (h, w) in enumerate(sizes):
        pixels = golden("model")[f"img{i}_bgr_uint8_chw"][::-1].transpose(1, 2, 0)
        images[i, :h, :w] = pixels[:h, :w]
    return images


def test_gradients_reach_the_backbone_as_in_the_reference():
    """From pixels through backbone, neck and all behind them, with the recorded assignment."""
    case = of_case("model", "g35")
    need(case, "match.gt_inds")
    slots, batch = jax.device_get(slots_of(case)), padded(batch_of(case), OBJECTS)
    shown = network_input(pixels_of(SIZE, PADDED), SIZE, "torchvision")

    def loss(params):
        ours = NETWORK.apply({"params": params}, shown, SIZE, slots, method="training")
        ours = ours._replace(denoising_targets=slots.targets)
        terms = all_terms(ours, batch, case["match.gt_inds"])
        return sum(terms.values())

    value, gradient = jax.jit(jax.value_and_grad(loss))(params_of("model"))
    np.testing.assert_allclose(value, case["loss.total"], rtol=1e-4)
    theirs = {k.removeprefix("grad."): v for k, v in case.items() if k.startswith("grad.")}
    assert len(theirs) == 40 and sum(name.startswith("backbone.") for name in theirs) == 11
    ours, theirs = flatten(gradient), our_gradients(theirs)
    for name, one in theirs.items():
        close(ours[name], one)


@pytest.mark.parametrize("name", ["eval", "odd.eval"])
def test_the_whole_network_is_the_references_from_pixels(name):
    case, arrays = of_case("model", name), golden("model")
    need(case, "head.cls")
    prefix = name.removesuffix("eval")
    sizes = arrays[f"{prefix}img_shapes_hw" if prefix else "cfg.img_shapes_hw"]
    images = pixels_of(sizes, arrays[f"{prefix}canvas_hw" if prefix else "cfg.canvas_hw"])

    @jax.jit
    def run(params, images, size):
        apply = functools.partial(NETWORK.apply, {"params": params})
        shown = network_input(images, size, "torchvision")
        return apply(shown, method="levels"), apply(shown, size)

    levels, ours = run(params_of("model"), images, np.int32(sizes))
    for i, level in enumerate(levels):
        close(level.transpose(0, 3, 1, 2), case[f"neck.out{i}"])
    close(ours.logits, case["head.cls"])
    close(ours.boxes, case["head.boxes"])
