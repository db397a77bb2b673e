"""The same work in plain PyTorch on the GPU card: MIST's step, torchvision's Faster R-CNN."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import torch

from experiments.bench import rcnn, torch_side
from experiments.bench.entry import random_boxes, random_image
from experiments.bench.gpu_ours import row
from experiments.bench.gpu_sizes import Jobs, Sizes, cases, images_of, timed
from experiments.bench.programs import CLASSES, TAGS, Case
from experiments.bench.torch_mil import random_state
from experiments.bench.torch_mil_step import make_adam, mist_loss

LR = 1e-5


def jobs(sizes: Sizes) -> Jobs:
    """What there is a PyTorch form of."""
    forms = {("mil", "train"): mil_step, ("faster_rcnn", "train"): rcnn_step}
    forms |= {("faster_rcnn", "predict"): rcnn_predict}
    return {
        f"{case.name} PyTorch": partial(measure, forms[case.detector, work], case, sizes)
        for work in ("train", "predict")
        for case in cases(sizes, work)
        if (case.detector, work) in forms
    }


def measure(form: Callable[[Case, Sizes], Callable], case: Case, sizes: Sizes) -> dict[str, Any]:
    """A row of a PyTorch form."""
    torch_side.peak_gib()  # from here on
    step = form(case, sizes)
    found = timed(step, lambda _: torch_side.wait(), sizes.repeats)
    return row(case, "PyTorch") | found | {"memory_gib": torch_side.peak_gib()}


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


@cache
def _rcnn(rois: int, side: int) -> Any:
    model = rcnn.torchvision_model(rois).to(torch_side.device())
    model.transform.min_size = (side,)
    return model


def rcnn_step(case: Case, sizes: Sizes) -> Callable[[], float]:
    """torchvision's training step."""
    model, targets = _rcnn(sizes.rois, min(case.size)).train(), rcnn.objects(case.size)
    more = {"lr": LR, "precision": case.precision}
    return rcnn.torchvision_step(model, photos(case), targets, **more)


def rcnn_predict(case: Case, sizes: Sizes) -> Callable[[], Any]:
    """torchvision's detection of a batch."""
    model = _rcnn(sizes.rois, min(case.size)).eval()
    shown, layers = rcnn.shown_to(model, photos(case)), torch_side.layers(case.precision)

    def detect() -> Any:
        with torch.no_grad(), layers:
            return model(shown)

    return detect
