"""CLIP-ES against open_clip's own forward pass, hooks and plain loops; files in three forms."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.ndimage
import torch
from PIL import Image
from safetensors.torch import save_file

from bridge.clues.clip_es import (
    BACKGROUNDS,
    ClipConfig,
    background_names,
    box_mask,
    grad_cams,
    load_clip_es,
    spread_matrix,
)
from bridge.weights.fingerprints import network_fingerprint
from weaksam_jax.errors import BadInput

pytest.importorskip("open_clip", reason="extra `clip` is not installed")

from open_clip import tokenize
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

CLASSES = ("dog", "person", "train")
SETTINGS = ClipConfig(backgrounds=("grass", "sky"), last_layers=2)


def small_clip(size=64, quick_gelu=True, output_tokens=True) -> CLIP:
    torch.manual_seed(0)
    vision = CLIPVisionCfg(4, 128, 64, 4.0, 16, size, output_tokens=output_tokens)
    text = CLIPTextCfg(77, 49408, width=64, heads=1, layers=2)
    model = CLIP(32, vision, text, quick_gelu=quick_gelu).eval()
    for name, parameter in model.visual.named_parameters():
        if "weight" in name and parameter.ndim > 1:  # attention that differs from place to place
            torch.nn.init.normal_(parameter, std=1.5 * parameter[0].numel() ** -0.5)
    return model


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.pth"
    torch.save(small_clip().state_dict(), path)
    return path


@pytest.fixture(scope="module")
def photo():
    noise = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return cv2.resize(noise, (101, 70), interpolation=cv2.INTER_CUBIC)


def plain_clip_es(model: CLIP, photo: np.ndarray, ids: list[int], quick_gelu=True) -> dict:
    """CLIP-ES in plain steps, on open_clip's own forward pass for just this size of image."""
    height, width = (-(-side // 16) * 16 for side in photo.shape[:2])
    grid = (height // 16, width // 16)
    own = small_clip((height, width), quick_gelu)
    state = model.state_dict()
    table = state["visual.positional_embedding"].numpy()
    square = [cv2.resize(one, grid[::-1]) for one in table[1:].T.reshape(-1, 4, 4)]
    resized = np.stack(square).reshape(len(square), -1).T
    position = torch.tensor(np.concatenate([table[:1], resized]))
    own.load_state_dict(state | {"visual.positional_embedding": position})

    pixels = np.asarray(Image.fromarray(photo).resize((width, height), Image.BICUBIC)) / 255
    pixels = (pixels - (0.48145466, 0.4578275, 0.40821073)) / (0.26862954, 0.26130258, 0.27577711)
    image = torch.tensor(pixels).permute(2, 0, 1)[None].float()
    normed = []

    def keep(module, inputs, output):
        output.retain_grad()
        normed.append(output)

    for block in own.visual.transformer.resblocks:
        block.ln_1.register_forward_hook(keep)
    pooled, tokens = own.visual(image)
    names = {"person": "person with clothes,people,human"}
    prompts = [f"a clean origami {names.get(c, c)}." for c in (*CLASSES, "grass", "sky")]
    with torch.no_grad():
        texts = own.encode_text(tokenize(prompts))
        texts = texts / texts.norm(dim=-1, keepdim=True)
        scale = own.logit_scale.exp()
        # zero-shot log-odds of the class token
        p = (scale * (pooled / pooled.norm()) @ texts.T).double().softmax(-1)[0, :3]
    feature = tokens.mean(1) @ own.visual.proj
    logits = scale * (feature / feature.norm()) @ texts[[*ids, 3, 4]].T
    coarse = []
    for index in range(len(ids)):
        own.zero_grad()
        normed[-1].grad = None
        logits.softmax(-1)[0, index].backward(retain_graph=True)
        channel = normed[-1].grad[0, 1:].mean(0).numpy()
        cam = np.maximum((normed[-1].detach().numpy()[0, 1:] * channel).sum(1), 0).reshape(grid)
        coarse.append((cam - cam.min()) / (cam.max() - cam.min()))

    # attention between patches of the last two layers, head by head
    attention = 0
    for block, seen in list(zip(own.visual.transformer.resblocks, normed, strict=True))[-2:]:
        qkv = seen[0] @ block.attn.in_proj_weight.T + block.attn.in_proj_bias
        for head in range(2):
            part = slice(head * 64, head * 64 + 64)
            q, k = qkv[:, :128][:, part], qkv[:, 128:256][:, part]
            attention = attention + (q @ k.T / 8).softmax(-1)[1:, 1:] / 4
    matrix = plain_spread(attention.detach().double().numpy())
    fine = []
    for cam in coarse:
        inside = cam * plain_box_mask(cam)
        fine.append(np.stack([(row * inside.ravel()).sum() for row in matrix]).reshape(grid))
    ups = {
        name: np.stack([cv2.resize(one, photo.shape[1::-1]) for one in maps])
        for name, maps in (("coarse", coarse), ("fine", fine))
    }
    normalise = lambda m: (m - m.min((1, 2), keepdims=True)) / np.ptp(m, (1, 2), keepdims=True)  # noqa: E731
    return {name: normalise(maps) for name, maps in ups.items()} | {
        "class_logits": (p / (1 - p)).log().numpy()
    }


def plain_spread(matrix: np.ndarray) -> np.ndarray:
    n, matrix = len(matrix), matrix.copy()
    for _ in range(3):
        for j in range(n):
            matrix[:, j] /= sum(matrix[i, j] for i in range(n))
        for i in range(n):
            matrix[i] /= sum(matrix[i, j] for j in range(n))
    symmetric = np.asarray(
        [[(matrix[i, j] + matrix[j, i]) / 2 for j in range(n)] for i in range(n)]
    )
    return np.einsum("ij,jk->ik", symmetric, symmetric)


def plain_box_mask(cam: np.ndarray) -> np.ndarray:
    mask = np.zeros(cam.shape, bool)
    parts, _ = scipy.ndimage.label(cam > 0.4 * cam.max(), np.ones((3, 3)))
    for box in scipy.ndimage.find_objects(parts):
        mask[box] = True
    return mask


@pytest.mark.parametrize("ids", [(0, 2), (1,)])
def test_clues_equal_the_plain_form(weights, photo, ids):
    clues = load_clip_es(weights, CLASSES, SETTINGS)(photo, ids[::-1])
    expected = plain_clip_es(small_clip(), photo, list(ids))
    assert clues.class_ids.tolist() == list(ids) and clues.cross is None and clues.scale == 1
    assert clues.coarse.shape == clues.fine.shape == (len(ids), 70, 101)
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(clues, name), value, atol=2e-4, err_msg=name)
    assert np.abs(clues.coarse - clues.fine).max() > 0.1


def test_activation_is_a_setting(weights, photo):
    config = ClipConfig("gelu", backgrounds=("grass", "sky"), last_layers=2)
    clues = load_clip_es(weights, CLASSES, config)(photo, (0, 1))
    expected = plain_clip_es(small_clip(), photo, [0, 1], quick_gelu=False)
    np.testing.assert_allclose(clues.coarse, expected["coarse"], atol=2e-4)
    quick = load_clip_es(weights, CLASSES, SETTINGS)(photo, (0, 1))
    assert np.abs(clues.coarse - quick.coarse).max() > 1e-3


def test_tags_predictions_and_repetition(weights, photo):
    network = load_clip_es(weights, CLASSES, SETTINGS)
    none = network(photo, ())
    assert none.coarse.shape == none.fine.shape == (0, 70, 101) and none.cross is None
    first, again = network(photo, None), network(photo, None)
    likely = np.flatnonzero(first.class_logits > -0.5).tolist()
    assert first.class_ids.tolist() == (likely or [int(np.argmax(first.class_logits))])
    for name in ("coarse", "fine", "class_logits"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    flat = network(np.full((40, 57, 3), 90, np.uint8), (0,))
    assert np.isfinite(flat.coarse).all() and np.isfinite(flat.fine).all()


def test_images_in_parallel(weights, photo):
    """The export asks for several images at a time; gradients of one do not reach another."""
    network = load_clip_es(weights, CLASSES, SETTINGS)
    photos = [np.roll(photo, shift, 1) for shift in range(0, 80, 10)]
    one_by_one = [network(one, (0, 1)).fine for one in photos]
    with ThreadPoolExecutor(4) as pool:
        together = pool.map(lambda one: network(one, (0, 1)).fine, photos)
        for a, b in zip(one_by_one, together, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_sure_network_still_has_maps():
    """Of two scores the map is that of their difference, also where p rounds to 1 in float32."""
    generator = torch.Generator().manual_seed(0)
    normed = torch.randn(1, 10, 6, generator=generator).requires_grad_()
    one, two = torch.randn(2, 6, generator=generator)
    for gap in (1.0, 25.0):
        scores = torch.stack([(normed[0] @ one).sum(), (normed[0] @ two).sum()])
        scores = scores - scores.detach() + torch.tensor([gap, 0.0])
        (cam,) = grad_cams(scores, normed, 1)
        expected = (normed.detach()[0, 1:] @ (one - two)).relu()
        torch.testing.assert_close(cam / cam.max(), expected / expected.max())


def test_box_mask_has_the_boxes_of_parts():
    cam = np.zeros((7, 9))
    cam[0, 0] = cam[1, 1] = 1  # corners touch: one part
    cam[4, 4:7] = cam[5, 4] = 0.41
    cam[6, 8] = 0.4  # not above
    expected = np.zeros((7, 9), bool)
    expected[:2, :2] = expected[4:6, 4:7] = True
    assert (box_mask(cam, 0.4) == expected).all()
    for seed in range(5):
        noise = np.random.default_rng(seed).random((6, 8)) ** 3
        assert (box_mask(noise, 0.4) == plain_box_mask(noise)).all()
    assert not box_mask(np.zeros((3, 3)), 0.4).any()


def test_spread_matrix_equals_the_loops():
    attention = np.random.default_rng(0).random((7, 7)) ** 4
    found = spread_matrix(torch.tensor(attention)).numpy()
    np.testing.assert_allclose(found, plain_spread(attention), rtol=1e-9)
    np.testing.assert_allclose(found, found.T, rtol=1e-9)


def test_background_names_are_the_published_lists():
    """25 for VOC; for COCO "keyboard" is a class and "sign" a part of "stop sign"."""
    assert background_names(BACKGROUNDS, ("tvmonitor", "dog")) == list(BACKGROUNDS)
    coco = background_names(BACKGROUNDS, ("stop sign", "keyboard", "person"))
    assert len(BACKGROUNDS) == 25 and len(coco) == 23
    assert set(BACKGROUNDS) - set(coco) == {"sign", "keyboard"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_three_kinds_of_file(weights, tmp_path):
    """A state dict, open_clip's safetensors, and OpenAI's archive with its extra numbers."""
    model = small_clip(output_tokens=False)
    save_file(model.state_dict(), tmp_path / "clip.safetensors")
    wrapped = {f"module.{name}": value for name, value in model.state_dict().items()}
    torch.save({"state_dict": wrapped, "epoch": 3}, tmp_path / "wrapped.pt")
    archive = openai_archive(model, tmp_path / "ViT-B-16.pt")
    first = network_fingerprint(load_clip_es(weights, CLASSES, SETTINGS))
    for path in (tmp_path / "clip.safetensors", archive, tmp_path / "wrapped.pt"):
        assert network_fingerprint(load_clip_es(path, CLASSES, SETTINGS)) == first
    assert network_fingerprint(load_clip_es(weights, ("dog", "cat"), SETTINGS)) != first
    assert network_fingerprint(load_clip_es(weights, CLASSES)) != first


def openai_archive(model: CLIP, path: Path) -> Path:
    """The model traced, with the three numbers as buffers, as OpenAI published it."""
    for name in ("input_resolution", "context_length", "vocab_size"):
        if hasattr(model, name):
            delattr(model, name)
        model.register_buffer(name, torch.tensor(77))
    inputs = (torch.zeros(1, 3, 64, 64), torch.zeros(1, 77, dtype=torch.long))
    torch.jit.trace(model, inputs, check_trace=False).save(str(path))
    return path


def test_wrong_files_are_named(tmp_path, weights):
    state = torch.load(weights, weights_only=True)
    for name, change, told in (
        ("lacking", {"visual.ln_post.bias": None}, r"missing: visual\.ln_post\.bias"),
        ("more", {"logit_bias": torch.zeros(())}, r"not known: logit_bias"),
        ("shape", {"visual.proj": torch.zeros(128, 31)}, r"visual\.proj \(128, 31\) instead of"),
        ("resnet", {"visual.conv1.weight": None}, "no CLIP with a ViT"),
        ("narrow", {"token_embedding.weight": torch.zeros(9, 48)}, "widths 128 and 48"),
        ("cut", {"visual.transformer.resblocks.2.ln_1.weight": None}, r"resblocks\.2\.ln_1\.wei"),
    ):
        changed = {key: value for key, value in (state | change).items() if value is not None}
        torch.save(changed, tmp_path / f"{name}.pth")
        with pytest.raises(BadInput, match=rf"{name}\.pth.*{told}"):
            load_clip_es(tmp_path / f"{name}.pth", CLASSES)
    with pytest.raises(BadInput, match="does not exist"):
        load_clip_es(tmp_path / "none.pt", CLASSES)
