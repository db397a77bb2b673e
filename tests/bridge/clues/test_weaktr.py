"""WeakTr against a second, step-by-step form written from the description; checkpoints; views."""

import dataclasses
import tracemalloc

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from plain_weaktr import AAF, published_state, slow_weaktr
from safetensors.torch import save_file
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from bridge.clues.interface import minmax
from bridge.clues.weaktr import WeakTr, WeakTrClues, WeakTrConfig, at_depth, load_weaktr, to_tensor
from bridge.clues.weaktr_recipe import WeakTrRecipe
from bridge.clues.weaktr_training import train_weaktr
from bridge.proposals.prompts import PromptConfig, prompt_points
from weaksam_jax.data.records import TagRecord, TagSplit
from weaksam_jax.errors import BadInput
from weaksam_jax.run_folder import RunFolder

SMALL = {"classes": 5, "dim": 256, "heads": 4, "depth": 4}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Checkpoint files in the published layout at a smaller size, by generation."""
    folder = tmp_path_factory.mktemp("weaktr")
    for fusion in ("v3", "v1"):
        state = {f"module.{k}": v for k, v in published_state(fusion=fusion, **SMALL).items()}
        torch.save({"model": state, "epoch": 59, "miou": 0.69}, folder / f"{fusion}.pth")
    return folder


def compare_with_slow_form(path, state, size, heads):
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    view = load_weaktr(path)(image)
    expected = slow_weaktr(state, image, heads)
    for name, value in expected.items():
        found = getattr(view, name)
        assert found.shape == value.shape, name
        scale = value.abs().max()
        assert (found - value).abs().max() < 1e-4 * max(1, scale), name
        assert (found - value).abs().max() < 1e-3 * scale, name  # small maps too


@pytest.mark.parametrize("fusion", ["v3", "v1"])
@pytest.mark.parametrize("size", [(224, 224), (75, 131), (99, 64)])
def test_forward_equals_the_slow_form(published, fusion, size):
    state = published_state(fusion=fusion, **SMALL)
    compare_with_slow_form(published / f"{fusion}.pth", state, size, heads=4)


@pytest.mark.parametrize(
    ("classes", "fusion", "size"),
    [
        (20, "v3", (75, 131)),
        (90, "v3", (99, 250)),  # the position embedding is made narrower and wider
        (20, "v1", (251, 85)),
        (20, "v3", (224, 230)),  # 14 x 14 patches, but resized, as the image is not square
    ],
)
def test_forward_at_the_published_size(classes, fusion, size, tmp_path):
    state = published_state(classes, fusion)
    prefixed = {f"module.{name}": value for name, value in state.items()}
    torch.save({"model": prefixed, "epoch": 59, "miou": 0.69}, tmp_path / "full.pth")
    assert load_weaktr(tmp_path / "full.pth").config == WeakTrConfig(classes, fusion=fusion)
    compare_with_slow_form(tmp_path / "full.pth", state, size, heads=6)


def test_published_layout():
    """Numbers of keys and parameters of the published networks."""
    for classes, count in ((20, 21_751_221), (90, 22_046_971)):
        model = WeakTr(WeakTrConfig(classes))
        assert len(model.state_dict()) == 158
        assert sum(p.numel() for p in model.parameters()) == count
        shapes = {k: v.shape for k, v in published_state(classes).items()}
        assert {k: v.shape for k, v in model.state_dict().items()} == shapes
    assert len(WeakTr(WeakTrConfig(20, fusion="v1")).state_dict()) == 154


def test_sizes_are_read_off_the_file(tmp_path):
    small = WeakTrConfig(5, dim=48, heads=4, depth=3, patch=8, grid=6)
    for config in (
        small,
        WeakTrConfig(5, 48, 4, 3, 8, 6, "v1"),
        WeakTrConfig(7, 32, 2, 2, 16, 4, stem="conv"),
    ):
        model = WeakTr(config).eval()
        save_file(model.state_dict(), tmp_path / "small.safetensors")
        loaded = load_weaktr(tmp_path / "small.safetensors")
        assert loaded.config == config
        image = torch.randn(1, 3, 50, 70)
        torch.testing.assert_close(loaded(image).fine, model(image).fine)


@pytest.mark.parametrize("reach", [None, 0, 1])
def test_reach_bounds_what_a_patch_knows(reach):
    """One patch is changed: two blocks and the 3 x 3 head carry that 2 reach + 1 patches away to
    the coarse map, and everywhere without a reach; the class tokens see it in any case."""
    torch.manual_seed(0)
    config = WeakTrConfig(5, dim=48, heads=4, depth=2, patch=8, grid=11, reach=reach)
    model = WeakTr(config).eval()
    image = torch.randn(1, 3, 88, 88)
    other = image.clone()
    other[:, :, 40:48, 16:24] += 1  # row 5, column 2
    a, b = model(image), model(other)
    assert (a.class_logits != b.class_logits).all()
    assert (a.coarse_logits != b.coarse_logits).all()
    with torch.no_grad():
        model.head.bias += 100  # so that ReLU hides nothing
    changed = (model(image).coarse - model(other).coarse).abs().amax(0) > 1e-4
    rows, columns = np.nonzero(changed.numpy())
    if reach is None:
        assert changed.all()
        return
    far = 2 * reach + 1
    assert changed[5, 2]
    assert (abs(rows - 5) <= far).all() and (abs(columns - 2) <= far).all()
    assert changed[5 - far : 6 + far, : 3 + far].sum() == changed.sum() > far


def test_reach_is_kept_by_the_file(tmp_path):
    settings = dataclasses.replace(WeakTrRecipe.mini(), epochs=1, warmup_epochs=0, batch_size=1)
    image = np.random.default_rng(0).integers(0, 255, (120, 130, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    record = TagRecord(1, "a.png", tmp_path / "a.png", 130, 120, (0,))
    split = TagSplit("one", "train", ("a", "b"), (1, 2), (record,))
    path = train_weaktr(split, settings, RunFolder(tmp_path), 0)
    assert load_weaktr(path).config == settings.config(2) and settings.reach is not None


def test_random_v1_weights_equal_the_plain_mean(tmp_path):
    """At the published size, with PyTorch's default start: what the official code computes."""
    for fusion in ("v3", "v1"):
        torch.save(published_state(fusion=fusion), tmp_path / f"{fusion}.pth")
    image = torch.randn(1, 3, 160, 200, generator=torch.Generator().manual_seed(2))
    random = minmax(load_weaktr(tmp_path / "v1.pth")(image).fine.numpy())
    plain = minmax(load_weaktr(tmp_path / "v1.pth", fusion="uniform")(image).fine.numpy())
    v3 = minmax(load_weaktr(tmp_path / "v3.pth")(image).fine.numpy())
    same = minmax(load_weaktr(tmp_path / "v3.pth", fusion="uniform")(image).fine.numpy())
    assert np.abs(random - plain).max() < 1e-3
    assert np.abs(v3 - same).max() > 1e-3


def test_uniform_needs_no_fusion_weights(tmp_path):
    state = {k: v for k, v in published_state(**SMALL).items() if not k.startswith(AAF)}
    torch.save(state, tmp_path / "bare.pth")
    image = torch.randn(1, 3, 64, 80)
    view = load_weaktr(tmp_path / "bare.pth", fusion="uniform")(image)
    torch.testing.assert_close(
        view.fine.double(), slow_weaktr(state, image, 4)["fine"], atol=1e-5, rtol=1e-3
    )
    with pytest.raises(BadInput, match="attn_feat_ffn"):
        load_weaktr(tmp_path / "bare.pth")


def test_mismatches_are_named(published, tmp_path):
    with pytest.raises(BadInput, match=r"missing: adaptive_attention_fusion\.fc\.0.*attn_f"):
        load_weaktr(published / "v3.pth", fusion="v1")
    state = published_state(**SMALL)
    lacking = {k: v for k, v in state.items() if k != "blocks.2.mlp.fc1.bias"}
    torch.save(lacking, tmp_path / "lacking.pth")
    with pytest.raises(BadInput, match=r"missing: blocks\.2\.mlp\.fc1\.bias"):
        load_weaktr(tmp_path / "lacking.pth")
    torch.save(state | {"decoder.weight": torch.zeros(1)}, tmp_path / "more.pth")
    with pytest.raises(BadInput, match=r"not known: decoder\.weight"):
        load_weaktr(tmp_path / "more.pth")
    torch.save(state | {"head.bias": torch.zeros(4)}, tmp_path / "shape.pth")
    with pytest.raises(BadInput, match=r"head\.bias \(4,\) instead of \(5,\)"):
        load_weaktr(tmp_path / "shape.pth")
    torch.save({"resnet.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(BadInput, match="no WeakTr"):
        load_weaktr(tmp_path / "other.pth")


def test_unreadable_files(tmp_path):
    with pytest.raises(BadInput, match="does not exist"):
        load_weaktr(tmp_path / "none.pth")
    for name in ("cut.pth", "cut.safetensors"):
        (tmp_path / name).write_bytes(b"\x80\x02}q\x00(X")
        with pytest.raises(BadInput, match=name):
            load_weaktr(tmp_path / name)
    with pytest.raises(BadInput, match="not a file"):
        load_weaktr(tmp_path)
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(BadInput, match=r"no whole PyTorch checkpoint \([A-Za-z ]{4,}\)"):
        load_weaktr(tmp_path / "text.pth")
    torch.save({"model": {"cls_token": Image.new("RGB", (2, 2))}}, tmp_path / "objects.pth")
    with pytest.raises(BadInput):  # other classes than tensors are not unpickled
        load_weaktr(tmp_path / "objects.pth")


def small_model(seed=0):
    torch.manual_seed(seed)
    model = WeakTr(WeakTrConfig(5, dim=32, heads=2, depth=4, patch=8, grid=6))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return model.eval().requires_grad_(False)


def test_views_equal_one_at_a_time():
    """Scales and mirrored twins, one view at a time and at odd size."""
    model, rng = small_model(), np.random.default_rng(0)
    image = rng.integers(0, 256, (61, 83, 3), dtype=np.uint8)
    clues = WeakTrClues(model, cross_layers=(1, 3))(image, (3, 1))
    assert clues.class_ids.tolist() == [1, 3]
    sums = {"coarse": 0, "fine": 0, "cross": 0}
    for scale in (1.0, 0.8, 1.2):
        size = (round(83 * scale), round(61 * scale))
        view = np.asarray(Image.fromarray(image).resize(size, Image.BICUBIC))
        for mirrored in (False, True):
            pixels = view[:, ::-1].copy() if mirrored else view
            out = model(to_tensor(pixels)[None])
            cross = out.cross[[0 * 4 + 1, 0 * 4 + 3, 1 * 4 + 1, 1 * 4 + 3]]
            for name, maps in (("coarse", out.coarse), ("fine", out.fine), ("cross", cross)):
                up = F.interpolate(
                    maps.reshape(1, -1, *maps.shape[-2:]), size=(61, 83), mode="bilinear"
                ).reshape(*maps.shape[:-2], 61, 83)
                sums[name] = sums[name] + (up.flip(-1) if mirrored else up).numpy()
    for name, total in sums.items():
        total = total[..., [1, 3], :, :]
        low, high = total.min((-2, -1), keepdims=True), total.max((-2, -1), keepdims=True)
        np.testing.assert_allclose(getattr(clues, name), (total - low) / (high - low), atol=2e-4)
    np.testing.assert_allclose(
        clues.class_logits, model(to_tensor(image)[None]).class_logits, atol=1e-5
    )


def test_mirrored_image_gives_mirrored_clues():
    image = np.random.default_rng(1).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    network = WeakTrClues(small_model(), tta_scales=(1.0,))
    clues, mirrored = network(image, (0, 2)), network(image[:, ::-1], (0, 2))
    for name in ("coarse", "fine", "cross"):
        np.testing.assert_allclose(
            getattr(clues, name), getattr(mirrored, name)[..., ::-1], atol=1e-4
        )


def test_predicted_and_absent_classes():
    model = small_model()
    image = np.random.default_rng(2).integers(0, 256, (40, 57, 3), dtype=np.uint8)
    logits = model(to_tensor(image)[None]).class_logits.numpy()
    network = WeakTrClues(model, tta_scales=(1.0,))
    assert network(image).class_ids.tolist() == np.flatnonzero(logits > -0.5).tolist()
    torch.nn.init.constant_(model.cls_token, -50.0)  # nothing above -0.5: the best class alone
    clues = network(image)
    assert clues.class_ids.tolist() == [int(np.argmax(clues.class_logits))]
    torch.nn.init.zeros_(model.head.weight)
    torch.nn.init.constant_(model.head.bias, -1.0)  # a CAM without any activation
    clues = network(image, (1,))
    assert not clues.coarse.any() and not clues.fine.any()
    assert np.isfinite(clues.cross).all()
    none = network(image, ())
    assert none.coarse.shape == (0, 40, 57) and none.cross.shape[1:] == (0, 40, 57)


def test_maps_are_of_present_classes_only(monkeypatch):
    """No cross rows of other classes are gathered, but in the first view when classes are asked."""
    model, asked = small_model(), []
    maps = WeakTr.maps

    def spying(self, images, classes=None):
        asked.append(classes.tolist())
        return maps(self, images, classes)

    monkeypatch.setattr(WeakTr, "maps", spying)
    image = np.random.default_rng(2).integers(0, 256, (40, 57, 3), dtype=np.uint8)
    WeakTrClues(model, slots=(4, 2, 0))(image, (2, 1))
    assert asked == [[2, 0]] * 3
    asked.clear()
    ids = WeakTrClues(model, slots=(4, 2, 0))(image).class_ids
    assert asked == [[4, 2, 0], *[[(4, 2, 0)[i] for i in ids]] * 2]


def test_huge_images_have_smaller_maps():
    """Points of a 2400 x 1200 photograph are those of its quarter, in pixels of the photograph."""
    small = cv2.resize(
        np.random.default_rng(3).integers(0, 256, (6, 12, 3), dtype=np.uint8), (600, 300)
    )
    network = WeakTrClues(small_model(), tta_scales=(1.0,), resize_long=96)
    huge = network(np.kron(small, np.ones((4, 4, 1), np.uint8)), (2,))
    assert huge.coarse.shape == (1, 500, 1000) and huge.scale == pytest.approx(1 / 2.4)
    settings = PromptConfig(sources=("fine",), relative_kernel=True)
    points = prompt_points(huge, settings, 1200, 2400).points
    expected = prompt_points(network(small, (2,)), settings).points
    assert len(points) == len(expected) > 0
    assert np.abs(points[:, :2] / 4 - expected[:, :2]).max() < 5


def test_only_the_fusion_learns_from_the_fine_logits():
    model = small_model().train().requires_grad_(True)
    out = model.maps(torch.randn(2, 3, 40, 48))
    for logits, learns in (
        (out.fine_logits, {"adaptive_attention_fusion"}),
        (out.coarse_logits, {"cls_token", "pos_embed", "patch_embed", "blocks", "head"}),
        (out.class_logits, {"cls_token", "pos_embed", "patch_embed", "blocks"}),
    ):
        model.zero_grad()
        logits.square().sum().backward(retain_graph=True)
        touched = {
            name.split(".")[0]
            for name, p in model.named_parameters()
            if p.grad is not None and p.grad.abs().sum() > 0
        }
        assert touched == learns
    assert not out.coarse.requires_grad and not out.cross.requires_grad


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that an operator gave."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else (out,):
            if isinstance(one, torch.Tensor):
                self.elements = max(self.elements, one.numel())
        return out


@pytest.mark.parametrize("fusion", ["v3", "v1", "uniform"])
def test_attention_maps_are_never_stacked(published, fusion):
    """One layer's maps are the largest tensor there is: 1 of 4 layers, and of 4 * 5 * P rows."""
    path = published / f"{'v1' if fusion == 'v1' else 'v3'}.pth"
    model = load_weaktr(path, fusion)
    images = torch.randn(2, 3, 208, 320)  # 13 x 20 patches and 5 class tokens
    with Largest() as largest:
        out = model.maps(images, torch.tensor([3]))
    assert largest.elements == 2 * 4 * 265**2
    assert out.cross.shape == (2, 16, 1, 13, 20)


def test_maps_are_enlarged_a_few_at_a_time(monkeypatch):
    """No tensor is larger than the sums of a kind, and the sums do not depend on the step."""
    image = np.random.default_rng(4).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    network = WeakTrClues(small_model(), cross_layers=(0, 1, 2, 3), resize_long=64)
    found = network(image, (0, 1, 3))  # 2 heads: 24 cross maps
    monkeypatch.setattr("bridge.clues.weaktr.PIXELS_AT_ONCE", 2 * 120 * 160)
    with Largest() as largest:
        few = network(image, (0, 1, 3))
    assert largest.elements == found.cross.size == few.cross.size
    for name in ("coarse", "fine", "cross"):
        np.testing.assert_array_equal(getattr(few, name), getattr(found, name))


def test_minmax_makes_one_copy():
    maps = np.random.default_rng(5).random((20, 100, 100), dtype=np.float32)
    tracemalloc.start()
    try:
        minmax(maps)
        assert tracemalloc.get_traced_memory()[1] < 1.2 * maps.nbytes
    finally:
        tracemalloc.stop()


def test_layers_at_another_depth_exist():
    for depth in range(1, 25):
        assert all(0 <= layer < depth for layer in at_depth(range(12), depth))
