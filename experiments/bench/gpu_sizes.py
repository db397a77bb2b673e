"""How large the work of the GPU card is, and how it is timed: `experiments.bench.gpu`."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from experiments.bench.programs import Case, published
from weaksam_jax.data.scales import PaddedSize
from weaksam_jax.detectors import DETECTORS
from weaksam_jax.engine.precision import Precision

# A row's name -> the work that gives its other fields.
Jobs = Mapping[str, Callable[[], dict[str, Any]]]


@dataclass(frozen=True)
class Sizes:
    """tiny: the smallest recipes. precisions: of ours. sides: padded (height, width) of detectors
    on proposals and of the others; check: of both beside the CPU. images: per call (0: the
    recipe's). rois: of torchvision's Faster R-CNN. width: of fc6 and fc7 in PyTorch, channels: of
    VGG16 there. sams: image encoders; photo: (height, width); grid: points per side. repeats: timed
    calls, after one."""

    tiny: bool
    precisions: tuple[Precision, ...]
    sides: tuple[PaddedSize, PaddedSize]
    check: PaddedSize
    proposals: int
    images: int
    rois: int
    width: int
    channels: tuple[int, ...]
    sams: tuple[str, ...]
    photo: tuple[int, int]
    grid: int
    repeats: int


CARD = Sizes(
    tiny=False,
    precisions=("bfloat16", "tf32", "float32"),
    sides=((688, 920), (832, 1248)),
    check=(128, 160),
    proposals=256,
    images=0,
    rois=512,
    width=4096,
    channels=(64, 128, 256, 512, 512),
    sams=("vit_h", "vit_b"),
    photo=(375, 500),
    grid=32,
    repeats=10,
)
TINY = Sizes(
    tiny=True,
    precisions=("bfloat16",),
    sides=((64, 96), (64, 96)),
    check=(64, 64),
    proposals=16,
    images=2,
    rois=16,
    width=32,
    channels=(4, 4, 8, 8, 8),
    sams=("sam_mini",),
    photo=(48, 64),
    grid=4,
    repeats=1,
)


def cases(sizes: Sizes, work: str) -> list[Case]:
    """Every detector's published recipe (tiny: its smallest) in all of the precisions."""
    found = []
    for name, kind in DETECTORS.items():
        recipe = "mini" if sizes.tiny else published(kind.presets)[0]
        size = sizes.sides[0 if kind.on_proposals else 1]
        more = {"size": size, "proposals": sizes.proposals, "images": sizes.images}
        found += [Case(name, recipe, work, precision=one, **more) for one in sizes.precisions]
    return found


def images_of(case: Case) -> int:
    """Images per call of a case."""
    config = DETECTORS[case.detector].presets[case.recipe]()
    part = config.optim if case.work == "train" else config.test
    return case.images or part.batch_size


def timed(call: Callable[[], Any], wait: Callable[[Any], Any], repeats: int) -> dict[str, float]:
    """{"first_s": of the first call, "ms": median of the next}, each waited for."""
    seconds = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        wait(call())
        seconds.append(time.perf_counter() - start)
    later = sorted(seconds[1:])
    return {"first_s": round(seconds[0], 2), "ms": round(1e3 * later[len(later) // 2], 3)}
