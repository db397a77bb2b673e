"""The same work in plain PyTorch on the GPU card: MIST's step, torchvision's Faster R-CNN and,
where transformers is installed, its Deformable DETR in the place of DINO."""

import gc
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from experiments.bench import rcnn, torch_side
from experiments.bench.entry import random_boxes, random_image
from experiments.bench.gpu_sizes import (
    Job,
    Jobs,
    Sizes,
    cases,
    fewer,
    halved,
    images_of,
    row,
    timed,
)
from experiments.bench.packages import is_there
from experiments.bench.programs import CLASSES, TAGS, Case, detector_of
from experiments.bench.torch_dino import dino_predict, dino_step
from experiments.bench.torch_mil import random_state
from experiments.bench.torch_mil_step import make_adam, mist_loss

LR = 1e-5
Form = Callable[[Case, Sizes], Callable[[], Any]]


def jobs(sizes: Sizes) -> Jobs:
    """What there is a PyTorch form of, precision by precision."""
    chosen = [case for work in ("train", "predict") for case in cases(sizes, work)]
    chosen.sort(key=lambda case: sizes.precisions.index(case.precision))
    return {
        f"{case.name} PyTorch": Job(
            partial(measure, FORMS[case.detector, case.work], case, sizes),
            kind=f"{case.detector} {case.work}",
        )
        for case in chosen
        if (case.detector, case.work) in FORMS
    }


def measure(form: Form, case: Case, sizes: Sizes) -> dict[str, Any]:
    """A row of a PyTorch form, of half the images as long as there is no room for them."""
    if case.detector == "dino" and not is_there("transformers"):
        return row(case, "PyTorch") | {"skipped": "transformers is not installed"}
    asked = case
    while True:
        try:
            found = run(form, case, sizes)
            break
        except torch.OutOfMemoryError:
            if images_of(case) == 1:
                raise
        case = halved(case)
    return row(case, "PyTorch") | fewer(case, asked) | NOTES.get(case.detector, {}) | found


def run(form: Form, case: Case, sizes: Sizes) -> dict[str, Any]:
    """Time, memory and, of a training step, the last loss of a form."""
    gc.collect()  # the row before
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    torch_side.peak_gib()  # from here on
    step, losses = form(case, sizes), []
    found = timed(lambda: losses.append(step()), lambda _: torch_side.wait(), sizes.repeats)
    if case.work == "train":
        found["loss"] = round(losses[-1], 4)
    return found | {"memory_gib": torch_side.peak_gib()}


def photos(case: Case) -> list[np.ndarray]:
    return [random_image(i, *case.size) for i in range(images_of(case))]


def mil_step(case: Case, sizes: Sizes) -> Callable[[], float]:
    """MIST's training step with VGG16: `experiments.bench.torch_mil_step`."""
    place = torch_side.device()
    state = random_state("wetectron", sizes.channels, sizes.width, classes=CLASSES)
    state = {name: value.to(place) for name, value in state.items()}
    images = torch.from_numpy(np.stack(photos(case))).to(place).permute(0, 3, 1, 2) - 128.0
    rng, shape = np.random.default_rng(0), case.size[::-1]
    boxes = [random_boxes(rng, case.proposals, shape[0], height=shape[1]) for _ in images]
    boxes = torch.from_numpy(np.stack(boxes)).to(place)
    tags = torch.isin(torch.arange(CLASSES), torch.tensor(TAGS)).expand(len(boxes), -1).to(place)
    adam, layers = make_adam(state, LR), torch_side.layers(case.precision)

    def step() -> float:
        adam.zero_grad()
        loss = mist_loss(state, images, boxes, tags=tags, layers=layers)
        loss.backward()
        adam.step()
        return loss.item()

    return step


def _rcnn(case: Case, sizes: Sizes) -> Any:
    threshold = detector_of(case).config.test.score_threshold
    model = rcnn.torchvision_model(sizes.rois, threshold).to(torch_side.device())
    model.transform.min_size = (min(case.size),)
    return model


def rcnn_step(case: Case, sizes: Sizes) -> Callable[[], float]:
    """torchvision's training step."""
    model, targets = _rcnn(case, sizes).train(), rcnn.objects(case.size)
    more = {"lr": LR, "precision": case.precision}
    return rcnn.torchvision_step(model, photos(case), targets, **more)


def rcnn_predict(case: Case, sizes: Sizes) -> Callable[[], Any]:
    """torchvision's detection of a batch, with our threshold of scores: it decides how many boxes
    go through the NMS there."""
    model = _rcnn(case, sizes).eval()
    shown, layers = rcnn.shown_to(model, photos(case)), torch_side.layers(case.precision)

    def detect() -> Any:
        with torch.no_grad(), layers:
            return model(shown)

    return detect


FORMS: dict[tuple[str, str], Form] = {
    ("mil", "train"): mil_step,
    ("faster_rcnn", "train"): rcnn_step,
    ("faster_rcnn", "predict"): rcnn_predict,
    ("dino", "train"): dino_step,
    ("dino", "predict"): dino_predict,
}
# What a form lacks beside ours.
LACKS = "Deformable DETR of transformers: no denoising queries, no loss of the first stage"
NOTES = {"dino": {"lacks": LACKS}}
