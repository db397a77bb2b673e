"""How large the work of the GPU card is, and how it is timed: `experiments.bench.gpu`."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from experiments.bench.programs import Case, published
from weaksam_jax.data.scales import PaddedSize
from weaksam_jax.detectors import DETECTORS
from weaksam_jax.engine.precision import Precision

ROW_SECONDS = 6.0  # that the timed calls of a row take, if two calls take no longer


@dataclass(frozen=True)
class Job:
    """A row of the card. measure: gives the row's fields, from what `prepare` gave if there is one.
    prepare: what may be done ahead and beside others, such as to compile. together: jobs behind one
    another that have the same word are prepared at the same time. kind: jobs of the same kind take
    about as long."""

    measure: Callable[..., dict[str, Any]]
    prepare: Callable[[], Any] | None = None
    together: str = ""
    kind: str = ""


Jobs = Mapping[str, Job]  # by the name of the row


@dataclass(frozen=True)
class Sizes:
    """tiny: the smallest recipes. precisions: of ours. sides: padded (height, width) of detectors
    on proposals and of the others; check: of both beside the CPU. images: per call (0: the
    recipe's). rois: of torchvision's Faster R-CNN. width: of fc6 and fc7 in PyTorch, channels: of
    VGG16 there. sams: image encoders; photo: (height, width); grid: points per side. repeats: timed
    calls, after one; exports: those of all proposals of an image."""

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
    exports: int


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
    exports=2,
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
    exports=1,
)


def cases(sizes: Sizes, work: str) -> list[Case]:
    """Every detector's published recipe (tiny: its smallest), all of them in one precision after
    the other: what there is no time for is the slower precisions."""
    return [
        _case(sizes, work, name, precision=one) for one in sizes.precisions for name in DETECTORS
    ]


def _case(sizes: Sizes, work: str, name: str, *, precision: Precision) -> Case:
    kind = DETECTORS[name]
    recipe = "mini" if sizes.tiny else published(kind.presets)[0]
    size = sizes.sides[0 if kind.on_proposals else 1]
    more = {"proposals": sizes.proposals, "images": sizes.images}
    return Case(name, recipe, work, size=size, precision=precision, **more)


def images_of(case: Case) -> int:
    """Images per call of a case."""
    config = DETECTORS[case.detector].presets[case.recipe]()
    part = config.optim if case.work == "train" else config.test
    return case.images or part.batch_size


def halved(case: Case) -> Case:
    """The case with half the images, where a call of all of them has no room."""
    return replace(case, images=images_of(case) // 2)


def fewer(case: Case, asked: Case) -> dict[str, Any]:
    """What a row says when its case has fewer images than were asked for."""
    if images_of(case) == images_of(asked):
        return {}
    return {"note": f"{images_of(asked)} images at a time have no room"}


def row(case: Case, form: str) -> dict[str, Any]:
    """What every row of a case says."""
    same = {"detector": case.detector, "work": case.work, "precision": case.precision}
    return same | {"form": form, "size": list(case.size), "images": images_of(case)}


def timed(
    call: Callable[[], Any],
    wait: Callable[[Any], Any],
    repeats: int,
    limit: float = ROW_SECONDS,
) -> dict[str, float]:
    """{"first_s": of the first call, "ms": median of the next}, each waited for; of two calls at
    least, and then of no more once they have taken `limit` seconds."""
    seconds: list[float] = []
    while len(seconds) <= repeats and not (len(seconds) > 2 and sum(seconds[1:]) > limit):
        start = time.perf_counter()
        wait(call())
        seconds.append(time.perf_counter() - start)
    later = sorted(seconds[1:])
    return {"first_s": round(seconds[0], 2), "ms": round(1e3 * later[len(later) // 2], 3)}
