"""MobileSAM: the published names of tensors, and the network against MobileSAM's own package."""

import numpy as np
import pytest
import torch
from small_sam import blocky_image

from bridge.proposals.prompts import Prompts, dense_grid
from bridge.proposals.sam_proposals import propose
from bridge.proposals.selection import ProposalConfig
from bridge.sam.mobile import mobile_sam
from bridge.sam.networks import load_sam
from bridge.sam.prompting import PromptedImage
from weaksam_jax.errors import BadInput


def conv_bn(name, out, into, kernel):
    shapes = {f"{name}.c.weight": (out, into, kernel, kernel)}
    for one in ("weight", "bias", "running_mean", "running_var"):
        shapes[f"{name}.bn.{one}"] = (out,)
    return shapes | {f"{name}.bn.num_batches_tracked": ()}


def linear(name, out, into):
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def published_shapes():
    """Names and shapes of `mobile_sam.pt`: the encoder as TinyViT's code names it, SAM's rest."""
    shapes = conv_bn("patch_embed.seq.0", 32, 3, 3) | conv_bn("patch_embed.seq.2", 64, 32, 3)
    widths, heads, windows = (64, 128, 160, 320), (2, 4, 5, 10), (7, 7, 14, 7)
    for i, depth in enumerate((2, 2, 6, 2)):
        width = widths[i]
        for j in range(depth):
            block = f"layers.{i}.blocks.{j}"
            if i == 0:
                shapes |= conv_bn(f"{block}.conv1", 256, 64, 1)
                shapes |= conv_bn(f"{block}.conv2", 256, 1, 3)
                shapes |= conv_bn(f"{block}.conv3", 64, 256, 1)
                continue
            shapes[f"{block}.attn.attention_biases"] = (heads[i], windows[i] ** 2)
            shapes |= norm(f"{block}.attn.norm", width) | norm(f"{block}.mlp.norm", width)
            shapes |= linear(f"{block}.attn.qkv", 3 * width, width)
            shapes |= linear(f"{block}.attn.proj", width, width)
            shapes |= linear(f"{block}.mlp.fc1", 4 * width, width)
            shapes |= linear(f"{block}.mlp.fc2", width, 4 * width)
            shapes |= conv_bn(f"{block}.local_conv", width, 1, 3)
        if i < 3:
            step, after = f"layers.{i}.downsample", widths[i + 1]
            shapes |= conv_bn(f"{step}.conv1", after, width, 1)
            shapes |= conv_bn(f"{step}.conv2", after, 1, 3)
            shapes |= conv_bn(f"{step}.conv3", after, after, 1)
    shapes |= norm("norm_head", 320) | linear("head", 1000, 320)
    shapes |= {"neck.0.weight": (256, 320, 1, 1), "neck.2.weight": (256, 256, 3, 3)}
    shapes |= norm("neck.1", 256) | norm("neck.3", 256)
    shapes = {f"image_encoder.{name}": shape for name, shape in shapes.items()}
    rest = mobile_sam().state_dict().items()
    return shapes | {k: tuple(v.shape) for k, v in rest if not k.startswith("image_encoder.")}


@pytest.fixture(scope="module")
def tensors():
    """Seeded weights that keep the activations near one."""
    generator, made = torch.Generator().manual_seed(0), {}
    for name, shape in published_shapes().items():
        value = torch.randn(shape, generator=generator)
        if name.endswith("num_batches_tracked"):
            value = torch.tensor(1)
        elif name.endswith("running_var"):
            value = 0.5 + value.abs()
        elif len(shape) == 1:
            value = 0.2 * value + name.endswith("weight")
        elif "attention_biases" not in name and "embed" not in name:
            value *= np.prod(shape[1:]) ** -0.5
        made[name] = value
    return made


@pytest.fixture(scope="module")
def path(tensors, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "mobile_sam.pt"
    torch.save(tensors, path)
    return path


def test_the_published_file_is_recognised_by_its_tensors(path, tensors, tmp_path):
    sam = load_sam(path)
    assert sam.image_encoder.img_size == 1024 and not sam.training
    assert not any(parameter.requires_grad for parameter in sam.parameters())
    assert len(sam.state_dict()) == len(tensors) - 4  # all but TinyViT's classifier
    vit, layers = sam.image_encoder.vit, "image_encoder.layers"
    bias = f"{layers}.2.blocks.5.attn.attention_biases"
    for ours, name in (
        (vit.patch_embed.conv2.bn.running_mean, "image_encoder.patch_embed.seq.2.bn.running_mean"),
        (vit.stages[0].blocks[1].conv3.conv.weight, f"{layers}.0.blocks.1.conv3.c.weight"),
        (vit.stages[1].downsample.conv1.conv.weight, f"{layers}.0.downsample.conv1.c.weight"),
        (vit.stages[2].blocks[5].attn.attention_biases, bias),
    ):
        assert torch.equal(ours, tensors[name]), name
    short = {name: value for name, value in tensors.items() if "neck.2" not in name}
    torch.save(short, tmp_path / "short.pt")
    with pytest.raises(BadInput, match=r"short\.pt: keys missing: .*neck\.2.*taken for MobileSAM"):
        load_sam(tmp_path / "short.pt")


def test_one_image_to_proposals(path):
    """End to end at 1024 pixels, and a few boxes that are not all the same."""
    sam = load_sam(path)
    prompts = Prompts(dense_grid(2, 60, 90), np.zeros((0, 5), np.float32))
    settings = ProposalConfig(t_iou=-100.0, t_stab=0.0, grid_nms=1.0)
    found = propose(sam, blocky_image(0, 60, 90), prompts, settings)
    assert 4 <= len(found) <= 12 and np.isfinite(found.predicted_iou).all()
    assert len(np.unique(found.predicted_iou)) == len(found)


def test_parity_with_mobilesams_own_package(path, tensors):
    """Same image tokens, masks and predicted IoU as `mobile_sam` with the same random weights."""
    package = pytest.importorskip(
        "mobile_sam", reason="MobileSAM's own code is in the extra 'dev': mobilesam-mirror==1.0.0"
    )
    theirs = package.sam_model_registry["vit_t"]()
    assert {name: tuple(one.shape) for name, one in theirs.state_dict().items()} == (
        published_shapes()
    )
    theirs.load_state_dict(tensors)
    theirs.eval()  # again: it caches the attention biases of the moment
    sam, image = load_sam(path), blocky_image(1, 300, 400)
    predictor = package.SamPredictor(theirs)
    predictor.set_image(image)
    prompted = PromptedImage(sam, image)
    features = predictor.get_image_embedding()
    assert features.std() > 0.1
    torch.testing.assert_close(prompted.predictor.features, features, rtol=1e-4, atol=1e-4)
    points = np.asarray([[[40.0, 200.0]], [[300.0, 30.0]]])
    logits, predicted_iou = prompted.decode(points)
    for i, point in enumerate(points):
        _, expected_iou, low = predictor.predict(point, np.ones(1), return_logits=True)
        np.testing.assert_allclose(logits[i], low, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(predicted_iou[i], expected_iou, rtol=1e-4, atol=1e-4)
