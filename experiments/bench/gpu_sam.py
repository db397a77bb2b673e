"""SAM on the GPU card (`bridge`, PyTorch): encoding an image, and all its proposals.

Weights are random in the published sizes, so masks mean nothing and the time does.
"""

import gc
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

import bridge.runtime.torchvision_ops  # noqa: F401  (before segment_anything: see there)

# isort: split
from segment_anything import sam_model_registry
from segment_anything.modeling import Sam

from bridge.proposals.sam_proposals import propose
from bridge.proposals.selection import ProposalConfig
from bridge.sam.networks import load_sam
from bridge.sam.prompting import PromptedImage
from experiments.bench import torch_side
from experiments.bench.entry import random_image
from experiments.bench.gpu_sizes import Job, Jobs, Sizes, timed
from experiments.bench.sam import random_prompts
from weaksam_jax.engine.precision import Precision

PEAKS = (11, 11, 20)  # coarse, fine and cross points of an image


def jobs(sizes: Sizes) -> Jobs:
    """Encodings and exports of one image, all of a network before the next one."""
    return {
        f"{name} {work.__name__} {precision}": Job(
            partial(measure, work, (name, precision), sizes), kind=f"{name} {work.__name__}"
        )
        for name, precision, work in _rows(sizes)
    }


def _rows(sizes: Sizes) -> Iterator[tuple]:
    for name in sizes.sams:
        for precision in sizes.precisions:
            yield from ((name, precision, work) for work in (encode, export))


def measure(work, which: tuple[str, Precision], sizes: Sizes) -> dict[str, Any]:
    """A row: one image at a time."""
    name, precision = which
    network = sam_of(name)
    torch_side.layers(precision)  # TF32 or not; bfloat16 is the encoder's own setting
    torch_side.peak_gib()
    call = partial(work, network, "bfloat16" if precision == "bfloat16" else "float32", sizes)
    repeats = sizes.exports if work is export else sizes.repeats
    found = timed(call, lambda _: torch_side.wait(), repeats)
    row = {"detector": name, "work": work.__name__, "precision": precision, "form": "ours"}
    return row | {"images": 1} | found | {"memory_gib": torch_side.peak_gib()}


def encode(network: Sam, dtype: str, sizes: Sizes) -> Any:
    """The embedding of one image."""
    return PromptedImage(network, random_image(0, *sizes.photo), dtype)


def export(network: Sam, dtype: str, sizes: Sizes) -> Any:
    """All proposals of one image: a grid of points, 42 peaks, two class-wise prompts, RLE masks."""
    prompts = random_prompts(0, *sizes.photo, grid_side=sizes.grid, counts=PEAKS)
    config = ProposalConfig(encoder_dtype=dtype)
    return propose(network, random_image(0, *sizes.photo), prompts, config=config)


def sam_of(name: str) -> Sam:
    """A frozen SAM where the work is done; random weights but for the small one of this package.
    Only the last one is kept: memory is that of one network."""
    if name not in _kept:
        _kept.clear()
        gc.collect()
        _kept[name] = _made(name)
    return _kept[name]


_kept: dict[str, Sam] = {}


def _made(name: str) -> Sam:
    if name == "sam_mini":
        return load_sam(name).to(torch_side.device())
    torch.manual_seed(0)
    with torch_side.device():
        network = sam_model_registry[name]()
    for parameter in network.mask_decoder.parameters():  # see `experiments.bench.sam.random_vit_b`
        parameter.data.mul_(2.3)
    network.mask_decoder.iou_prediction_head.layers[-1].bias.data.sub_(2)
    network.mask_threshold = 26.0
    return network.to(torch_side.device()).eval().requires_grad_(False)
