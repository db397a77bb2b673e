"""DINO's weights: mmdetection's and its authors' names, both directions, against golden numbers."""

import json

import jax
import numpy as np
import pytest
import torch
from dino_files import (
    CHANNELS,
    CLASSES,
    DECODER,
    ENCODER,
    FFN,
    LEVELS,
    QUERIES,
    SAMPLES,
    detrex,
    mmdet,
    official,
)
from golden_dino import SHARED, close, golden, need, of_case, our_names

import bridge.convert
from bridge.weights.dino import dino_arrays, dino_tensors
from bridge.weights.dino_detrex import DETREX
from bridge.weights.dino_mmdet import MMDET
from bridge.weights.dino_official import OFFICIAL
from weaksam_jax.cli import entry_point
from weaksam_jax.detectors import load_detector
from weaksam_jax.errors import BadInput
from weaksam_jax.files import read_arrays, write_arrays

FILES = {
    "mmdet": (mmdet, MMDET),
    "official": (official, OFFICIAL),
    "detrex": (detrex, DETREX),
}
# neck_bias, prediction_epsilon, position_temperature, position_offset
STATED = {
    "mmdet": (False, 1e-5, 20, 0),
    "official": (True, 1e-3, 20, 0),
    "detrex": (True, 1e-3, 10_000, -0.5),
}


def saved(path, tensors, key="state_dict"):
    torch.save({key: {name: torch.tensor(value) for name, value in tensors.items()}}, path)
    return path


def test_names_and_layouts_are_those_of_the_golden_numbers():
    """By the table that the network's own tests have."""
    arrays, _ = dino_arrays(mmdet(), MMDET, "some.pth")
    expected = our_names(mmdet())
    assert arrays.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(arrays[name], value, err_msg=name)


@pytest.mark.parametrize("library", ["official", "detrex"])
def test_the_others_files_are_the_same_network(library):
    make, layout = FILES[library]
    arrays, _ = dino_arrays(make(), layout, "some.pth")
    expected, _ = dino_arrays(mmdet(), MMDET, "some.pth")
    for i in range(LEVELS):
        name = f"neck.convs.{i}" if i < 3 else "neck.extra_convs.0"
        bias = make()[f"input_proj.{i}.0.bias" if library == "official" else f"{name}.conv.bias"]
        np.testing.assert_array_equal(arrays.pop(f"neck/level{i}_conv/bias"), bias)
    assert arrays.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(arrays[name], value, err_msg=name)


@pytest.mark.parametrize("library", FILES)
def test_sizes_are_read_off_the_arrays(tmp_path, library):
    path = saved(tmp_path / "d.pth", FILES[library][0](), "model")
    to = tmp_path / "d.safetensors"
    bridge.convert.main([f"dino_{library}", "--from", str(path), "--to", str(to), "--heads", "4"])
    detector, params = load_detector(to)
    model, (bias, epsilon, *code) = detector.config.model, STATED[library]
    assert (model.backbone, model.backbone_width, model.strides) == ("resnet50", 2, (8, 16, 32, 64))
    assert (model.channels, model.ffn_width, model.queries) == (CHANNELS, FFN, QUERIES)
    assert (model.heads, model.points) == (4, SAMPLES // (4 * LEVELS)) and model.neck_groups == 32
    assert (model.encoder_layers, model.decoder_layers) == (ENCODER, DECODER)
    assert (model.neck_bias, model.prediction_epsilon) == (bias, epsilon)
    assert model.encoder == "deformable"
    assert [model.position_temperature, model.position_offset] == code
    test = detector.config.test
    assert (test.max_detections, test.score_threshold, test.tta_flip) == (300, 0, False)
    (scale,) = test.tta_scales
    assert (800, 1088) in scale and all(max(size) <= 1344 for size in scale)
    assert detector.class_count == CLASSES
    assert sum(one.size for one in jax.tree.leaves(params)) > 10_000


@pytest.mark.skipif(not SHARED.exists(), reason="no golden numbers of whole networks")
def test_a_converted_network_gives_the_golden_numbers_from_pixels(tmp_path):
    arrays, case = golden("model"), of_case("model", "eval")
    need(case, "head.cls")
    own = {name[2:]: value for name, value in arrays.items() if name.startswith("w.")}
    to = tmp_path / "d.safetensors"
    path = saved(tmp_path / "d.pth", own)
    bridge.convert.main(["dino_mmdet", "--from", str(path), "--to", str(to)])
    detector, params = load_detector(to)
    sizes, (height, width) = arrays["cfg.img_shapes_hw"], arrays["cfg.canvas_hw"]
    images = np.zeros((2, height, width, 3), np.uint8)
    for i, (h, w) in enumerate(sizes):
        pixels = arrays[f"img{i}_bgr_uint8_chw"][::-1].transpose(1, 2, 0)
        images[i, :h, :w] = pixels[:h, :w]

    @jax.jit
    def run(params, images, size):
        shown = detector.normalised({"image": images, "size": size})
        return detector.network.apply({"params": params}, shown, size)

    with jax.default_matmul_precision("highest"):
        found = run(params, images, np.int32(sizes))
    close(found.logits, case["head.cls"])
    close(found.boxes, case["head.boxes"])


def test_mmdetections_file_comes_back(tmp_path):
    first, arrays, back = (tmp_path / name for name in ("a.pth", "a.safetensors", "b.pth"))
    saved(first, mmdet() | {"backbone.bn1.num_batches_tracked": np.int64(7)})
    bridge.convert.main(["dino_mmdet", "--from", str(first), "--to", str(arrays)])
    bridge.convert.main(["dino_mmdet", "--from", str(arrays), "--to", str(back)])
    found = torch.load(back, weights_only=True)["state_dict"]
    assert found.keys() == mmdet().keys()
    for name, value in mmdet().items():
        # of norms the folded scale is stored, which is rounded
        folded = "backbone." in name and value.ndim == 1
        np.testing.assert_allclose(found[name], value, rtol=1e-6 if folded else 0, err_msg=name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"neck/level0_conv/bias": np.zeros(32, np.float32)}, "has neck/level0_conv/bias, for"),
        ({"decoder/norm/bias": None}, r"is no DINO over ResNet-50 \('decoder/norm/bias'\)"),
        ({"query_embed": None}, "is no DINO over ResNet-50"),
        ({"memory_fc/kernel": np.zeros((2, 3), np.float32)}, r"memory_trans_fc\.weight has the"),
        ({"encoder/fpn/x": np.zeros(3, np.float32)}, "has encoder/fpn/x, for which the library"),
    ],
)
def test_other_networks_do_not_go_back(change, message):
    arrays, _ = dino_arrays(mmdet(), MMDET, "some.pth")
    changed = {name: one for name, one in {**arrays, **change}.items() if one is not None}
    with pytest.raises(BadInput, match=rf"some\.safetensors: {message}"):
        dino_tensors(changed, MMDET, "some.safetensors")


EMPTY = np.zeros((3, 0), np.float32)


@pytest.mark.parametrize(
    ("library", "name", "value", "message"),
    [
        ("mmdet", "decoder.norm.weight", None, r"has no tensor decoder\.norm\.weight"),
        ("mmdet", "backbone.conv1.weight", None, r"has no tensor backbone\.conv1\.weight"),
        ("mmdet", "query_embedding.weight", None, r"has no tensor query_embedding\.weight"),
        ("mmdet", "neck.convs.0.conv.weight", None, r"no tensor neck\.convs\.0\.conv\.weight"),
        ("mmdet", "neck.convs.1.conv.bias", np.ones(32), "1 unknown tensors, the first is neck"),
        ("mmdet", "mask_head.x", np.ones(3), r"1 unknown tensors, the first is mask_head\.x"),
        ("mmdet", "backbone.fc.bias", np.ones(3), r"1 unknown tensors, the first is backbone\.fc"),
        (
            *("mmdet", "bbox_head.reg_branches.2.4.weight", np.ones((3, 32))),
            r"bbox_head\.reg_branches\.2\.4\.weight has the shape \(3, 32\), not \(4, 32\)",
        ),
        ("mmdet", "query_embedding.weight", EMPTY, "it is empty"),
        ("mmdet", "level_embed", np.ones((3, 32)), r"level_embed has the shape \(3, 32\), not \(4"),
        ("official", "class_embed.1.bias", None, r"has no tensor class_embed\.1\.bias"),
        ("official", "label_enc.weight", np.ones((2, 32)), r"shape \(2, 32\), not \(3, 32\)"),
        (
            *("official", "transformer.enc_out_bbox_embed.layers.2.bias", np.ones(3)),
            r"enc_out_bbox_embed\.layers\.2\.bias has the shape \(3,\), not \(4,\)",
        ),
        ("official", "input_proj.0.0.weight", np.ones((32, 16, 3, 3)), "first level is no 1x1"),
        ("detrex", "class_embed.2.weight", None, r"has no tensor class_embed\.2\.weight"),
        (
            "detrex",
            "neck.extra_convs.0.conv.bias",
            None,
            r"tensor neck\.extra_convs\.0\.conv\.bias",
        ),
        ("official", "tgt_embed.weight", np.ones(3), "1 unknown tensors, the first is tgt_embed"),
    ],
)
def test_tensors_that_do_not_fit_are_named(library, name, value, message):
    make, layout = FILES[library]
    value = value if value is None else value.astype(np.float32)
    tensors = {k: one for k, one in {**make(), name: value}.items() if one is not None}
    with pytest.raises(BadInput, match=rf"some\.pth: .*{message}"):
        dino_arrays(tensors, layout, "some.pth")


def test_heads_that_do_not_divide_are_refused(tmp_path, capsys):
    path, to = saved(tmp_path / "d.pth", mmdet()), tmp_path / "d.safetensors"
    command = ["dino_mmdet", "--from", str(path), "--to", str(to), "--heads", "3"]
    assert entry_point(bridge.convert.main, command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path}: has 32 channels and 64 weights of an attention")
    assert "--heads" in line and not to.exists()


def test_classes_of_the_authors_coco_file(tmp_path):
    tensors = dict(official())
    rng = np.random.default_rng(2)
    for name, value in official().items():
        if "class_embed." in name or name == "label_enc.weight":
            rows = 92 if name == "label_enc.weight" else 91
            tensors[name] = rng.uniform(-1, 1, (rows, *value.shape[1:])).astype(np.float32)
    path, to = saved(tmp_path / "d.pth", tensors, "model"), tmp_path / "d.safetensors"
    bridge.convert.main(["dino_official", "--from", str(path), "--to", str(to)])
    arrays, metadata = read_arrays(to)
    names = json.loads(metadata["classes"])
    assert len(names) == 91 and (names[0], names[1], names[90]) == ("N/A", "person", "toothbrush")
    np.testing.assert_array_equal(arrays["label_embed"], tensors["label_enc.weight"][:91])
    write_arrays(to, arrays, metadata)
    with pytest.raises(BadInput, match="has 91 classes without background, not the 1 that are"):
        bridge.convert.main(
            ["dino_official", "--from", str(path), "--to", str(to), "--classes", "x"]
        )
