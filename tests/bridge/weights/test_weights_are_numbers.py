"""Weights are finite floating point numbers: whatever form they come in, and wherever they go."""

import bridge.runtime.torchvision_ops

# isort: split
import pickle
import struct

import numpy as np
import pytest
import torch
from dino_files import detrex, mmdet, official
from small_detector import small_arrays
from torch import nn
from torchvision.models import resnet50

import bridge.convert
from bridge.clues.lite_cam import load_lite_cam
from bridge.clues.weaktr import load_weaktr
from bridge.clues.weaktr_net import WeakTr, WeakTrConfig
from bridge.weights.faster_rcnn_detectron2 import DETECTRON2
from bridge.weights.faster_rcnn_torchvision import TORCHVISION
from bridge.weights.kinds import KINDS, convert, convert_back
from bridge.weights.lite0 import _layers, _shapes
from bridge.weights.r50_fpn import to_theirs
from bridge.weights.resnet50 import RESNET_MSRA, RESNET_TORCHVISION
from experiments.bench.torch_mil import random_state
from weaksam_jax.cli import entry_point
from weaksam_jax.detectors import load_detector
from weaksam_jax.engine.weights import load_params, unflatten
from weaksam_jax.errors import BadInput
from weaksam_jax.files import read_arrays, write_arrays

SMALL = {"channels": (2, 4, 8, 16, 16), "width": 7, "classes": 3}
NORMS = ("weight", "bias", "running_mean", "running_var")


def tensors(arrays):
    return {name: torch.tensor(value) for name, value in arrays.items()}


def backbone():
    arrays = small_arrays()
    return {n[9:]: value for n, value in arrays.items() if n.startswith("backbone/")}


def lite0():
    """A state_dict of EfficientNet-Lite0 of small random numbers."""
    rng, state = torch.Generator().manual_seed(0), {}
    for name, (conv, norm) in _layers().items():
        shape = _shapes()[name]
        state[f"{conv}.weight"] = torch.rand(shape, generator=rng)
        state |= {f"{norm}.{part}": torch.rand(shape[:1], generator=rng) for part in NORMS}
    return state


STATES = {
    "efficientnet_lite0": lite0,
    "vgg16": lambda: random_state("torchvision", **SMALL),
    "resnet50": lambda: tensors(to_theirs(backbone(), RESNET_TORCHVISION)),
    "wetectron": lambda: random_state("wetectron", **SMALL),
    "mmdet_oicr": lambda: random_state("mmdet", **SMALL),
    "faster_rcnn_torchvision": lambda: tensors(to_theirs(small_arrays(), TORCHVISION)),
    "faster_rcnn_detectron2": lambda: tensors(to_theirs(small_arrays(), DETECTRON2)),
    "dino_mmdet": lambda: tensors(mmdet()),
    "dino_official": lambda: tensors(official()),
    "dino_detrex": lambda: tensors(detrex()),
}
FORMS = {
    "parameters": nn.Parameter,
    "bfloat16": torch.Tensor.bfloat16,
    "half": torch.Tensor.half,
    "double": torch.Tensor.double,
    "sparse": torch.Tensor.to_sparse,
    "parameters of half": lambda value: nn.Parameter(value.half()),
}


def for_some(kinds, cases, always):
    """(kind, case): every case for the smallest kind, some for the others."""
    return [(k, case) for k in kinds for case in cases if k == "wetectron" or case in always]


def as_plain(value):
    """What a form keeps of the numbers, as a plain tensor."""
    value = value.detach()
    return (value.to_dense() if value.is_sparse else value).float()


def test_every_kind_that_reads_a_checkpoint_is_here():
    # a pickle of arrays, and our own files
    assert KINDS.keys() - STATES.keys() == {"resnet50_msra", "ours"}


@pytest.mark.parametrize(
    ("kind", "form"), for_some(STATES, FORMS, ("parameters", "bfloat16", "sparse"))
)
def test_every_form_is_converted_as_the_plain_state_is(tmp_path, kind, form):
    state = {name: FORMS[form](value) for name, value in STATES[kind]().items()}
    plain = {name: as_plain(value) for name, value in state.items()}
    found = []
    for name, one in (("a", state), ("b", plain)):
        torch.save(one, tmp_path / f"{name}.pth")
        to = convert(kind, tmp_path / f"{name}.safetensors", tmp_path / f"{name}.pth")
        found.append(to.read_bytes())
    assert found[0] == found[1]


def test_a_network_s_own_parameters(tmp_path):
    """`named_parameters`, which hold gradients, instead of `state_dict`."""
    net = resnet50()
    torch.save(dict(net.named_parameters()) | dict(net.named_buffers()), tmp_path / "params.pth")
    torch.save(net.state_dict(), tmp_path / "state.pth")
    for name in ("params", "state"):
        flags = [
            "--from",
            str(tmp_path / f"{name}.pth"),
            "--to",
            str(tmp_path / f"{name}.safetensors"),
        ]
        assert entry_point(bridge.convert.main, ["resnet50", *flags]) == 0
    found, expected = (
        read_arrays(tmp_path / f"{name}.safetensors")[0] for name in ("params", "state")
    )
    assert found.keys() == expected.keys() and len(found) == 159
    assert all(np.array_equal(found[name], expected[name]) for name in found)


def first_kernel(state):
    return next(name for name in state if name.endswith("weight") and state[name].ndim == 4)


WRONG = {
    "holds NaN or infinity": lambda value: torch.full_like(value, torch.nan),
    "holds NaN or infinity ": lambda value: torch.where(value == value.max(), torch.inf, value),
    "holds NaN or infinity  ": lambda value: value.double() * 1e300,
    "holds int64, no floating point numbers": torch.Tensor.long,
    "holds bool, no floating point numbers": torch.Tensor.bool,
    "holds torch.complex64": lambda value: value.to(torch.complex64),
    "has the shape": lambda value: value[:, :, :-1],
    "has the shape ": lambda value: value[:0],
    "has the shape  ": lambda value: value.flatten(),
    "has the shape   ": lambda value: value[0, 0, 0, 0],
}


ALWAYS = ("holds NaN or infinity", "holds int64, no floating point numbers", "has the shape")


@pytest.mark.parametrize(("kind", "told"), for_some([*STATES, "resnet50_msra"], WRONG, ALWAYS))
def test_other_weights_are_named(tmp_path, capsys, kind, told):
    msra = kind == "resnet50_msra"
    state = tensors(to_theirs(backbone(), RESNET_MSRA)) if msra else STATES[kind]()
    name = "conv1_w" if msra else first_kernel(state)
    state[name] = WRONG[told](state[name])
    path, to = tmp_path / ("a.pkl" if msra else "a.pth"), tmp_path / "a.safetensors"
    if msra:
        path.write_bytes(pickle.dumps({n: value.numpy() for n, value in state.items()}, 2))
    else:
        torch.save(state, path)
    assert entry_point(bridge.convert.main, [kind, "--from", str(path), "--to", str(to)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path}: ") and told.strip() in line and name in line
    assert not to.exists()


def test_numbers_that_become_none_are_named(tmp_path):
    state = STATES["resnet50"]()
    state["bn1.running_var"] = -state["bn1.running_var"]
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(BadInput, match=r"bn1\.running_var holds variances below 0"):
        convert("resnet50", tmp_path / "a.safetensors", tmp_path / "a.pth")
    state["bn1.running_var"] = torch.full_like(state["bn1.running_var"], 1e-5)
    state["bn1.weight"] = torch.full_like(state["bn1.weight"], 3e38)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(BadInput, match=r"what becomes stem/norm/scale holds NaN or infinity"):
        convert("resnet50", tmp_path / "a.safetensors", tmp_path / "a.pth")
    state = lite0()
    state["_bn0.running_var"] -= 2
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(BadInput, match=r"_bn0\.running_var holds variances below 0"):
        convert("efficientnet_lite0", tmp_path / "a.safetensors", tmp_path / "a.pth")


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    path = tmp_path_factory.mktemp("detector") / "a.pth"
    torch.save(STATES["faster_rcnn_torchvision"](), path)
    return read_arrays(convert("faster_rcnn_torchvision", path.with_suffix(".safetensors"), path))


CHANGES = {
    "holds NaN or infinity": lambda value: value * np.float32(np.nan),
    "holds NaN or infinity ": lambda value: value + np.float32(np.inf),
    "holds int32, no floating": lambda value: value.astype(np.int32),
    "holds bool, no floating": lambda value: value.astype(bool),
    "holds complex64, no floating": lambda value: value.astype(np.complex64),
    "has the shape": lambda value: value[:-1],
}


@pytest.mark.parametrize("told", CHANGES)
def test_a_detector_of_other_numbers_is_not_loaded(tmp_path, detector, told):
    arrays, metadata = detector
    changed = arrays | {"rpn/conv/bias": CHANGES[told](arrays["rpn/conv/bias"])}
    write_arrays(tmp_path / "a.safetensors", changed, metadata)
    with pytest.raises(BadInput, match=rf"a\.safetensors: rpn/conv/bias {told.strip()}"):
        load_detector(tmp_path / "a.safetensors")
    if told != "has the shape":
        with pytest.raises(BadInput, match=rf"a\.safetensors: rpn/conv/bias {told.strip()}"):
            convert_back("faster_rcnn_torchvision", tmp_path / "b.pth", tmp_path / "a.safetensors")


def test_a_detector_in_bfloat16_is_loaded(tmp_path, detector):
    arrays, metadata = detector
    from safetensors.torch import save_file

    halves = {name: value.bfloat16() for name, value in tensors(arrays).items()}
    save_file(halves, tmp_path / "a.safetensors", metadata)
    _, params = load_detector(tmp_path / "a.safetensors")
    found = np.asarray(params["rpn"]["conv"]["kernel"])
    np.testing.assert_array_equal(found, halves["rpn/conv/kernel"].float().numpy())


@pytest.mark.parametrize("kind", ["wetectron", "mmdet_oicr"])
def test_layers_that_do_not_follow_on_each_other_do_not_go_back(tmp_path, kind):
    torch.save(STATES[kind](), tmp_path / "a.pth")
    arrays, metadata = read_arrays(convert(kind, tmp_path / "a.safetensors", tmp_path / "a.pth"))
    for name, change in {
        "backbone/conv2_1/kernel": lambda value: value[..., :-1],
        "backbone/conv3_1/bias": lambda value: value[:0],
        "fc7/kernel": lambda value: value[:0],
        "refine_1/bias": lambda value: value.reshape(1, -1),
        "fc6/bias": lambda value: value[0],
    }.items():
        write_arrays(tmp_path / "b.safetensors", arrays | {name: change(arrays[name])}, metadata)
        layer = name.rpartition("/")[0]
        with pytest.raises(BadInput, match=rf"b\.safetensors: {layer} has kernel \("):
            convert_back(kind, tmp_path / "b.pth", tmp_path / "b.safetensors")


# Networks whose sizes are the file's


def weaktr_state():
    return WeakTr(WeakTrConfig(3, 8, 2, depth=2, patch=4, grid=2)).state_dict()


CLUES = {
    "keys of another type: norm.bias torch.int64": {"norm.bias": torch.zeros(8, dtype=torch.long)},
    "keys with NaN or infinity: norm.bias": {"norm.bias": torch.full((8,), torch.nan)},
    "3 layers numbered up to 999999999": {"blocks.999999999.a": torch.zeros(1)},
    # 4 million channels, of which a layer would have 50 million million weights.
    "dim is 4194304": {"cls_token": torch.zeros(1, 1).expand(1, 3, 1 << 22)},
    "is no WeakTr checkpoint": {"cls_token": torch.tensor(1.0)},
}


@pytest.mark.parametrize("told", CLUES)
def test_a_clue_network_that_does_not_fit_is_not_built(tmp_path, told):
    state = weaktr_state() | CLUES[told]
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(BadInput, match=told):
        load_weaktr(tmp_path / "a.pth")


def test_a_lite_head_of_other_content(tmp_path):
    weight, bias = np.ones((3, 1280), np.float32), np.ones(3, np.float32)
    for told, arrays, settings in (
        ("no JSON", {"weight": weight, "bias": bias}, "[" * 10**5),
        ("no JSON", {"weight": weight, "bias": bias}, "nonsense"),
        ("is no object", {"weight": weight, "bias": bias}, "[1]"),
        ("steps", {"weight": weight, "bias": bias}, '{"steps": "many"}'),
        ("weight \\(3, 1279\\)", {"weight": weight[:, 1:], "bias": bias}, "{}"),
        ("bias \\(3, 1\\)", {"weight": weight, "bias": bias[:, None]}, "{}"),
        ("keys with NaN or infinity: weight", {"weight": weight * np.nan, "bias": bias}, "{}"),
    ):
        write_arrays(tmp_path / "a.safetensors", arrays, {"settings": settings})
        with pytest.raises(BadInput, match=told):
            load_lite_cam(tmp_path / "a.safetensors")


def test_names_that_are_no_tree(tmp_path):
    one = np.ones(1, np.float32)
    for names in (["a", "a/b"], ["a/b/c", "a/b"], ["a" + "/a" * 1000]):
        write_arrays(tmp_path / "a.safetensors", dict.fromkeys(names, one))
        with pytest.raises(BadInput, match=r"a\.safetensors: has names of arrays that are no tree"):
            load_params(tmp_path / "a.safetensors")
    for names in (["a/b/c", "a/b"], ["a/b", "a/b/c"]):
        with pytest.raises((ValueError, TypeError, IndexError, AttributeError)):
            unflatten(dict.fromkeys(names, one))


def test_a_damaged_header_of_our_own_files(tmp_path):
    path = tmp_path / "a.safetensors"
    for header in (b"[" * 10**5, b'{"a":' * 10**5, b"{}x", b""):
        path.write_bytes(struct.pack("<Q", len(header)) + header)
        with pytest.raises(BadInput, match=r"a\.safetensors: is no whole safetensors file"):
            load_detector(path)
