"""Entries of `experiments.bench`: Faster R-CNN R50-FPN beside torchvision's, the same weights.

One training step (losses, gradients, SGD) and one inference, of one image. Where torchvision's
compiled operators are missing, as on CPU-only torch, its RoIAlign is its own Python form (and its
NMS that of `bridge.runtime.torchvision_ops`). `rcnn_step_<rois>_<height>x<width>` show how the step
grows.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from experiments.bench import torch_side
from experiments.bench.entry import Case, Entry, random_image
from weaksam_jax.engine.precision import Precision
from weaksam_jax.settings import change

CLASSES, OBJECTS = 20, 5


def torchvision_model(rois: int, score_threshold: float = 0.0):
    """torchvision's Faster R-CNN R50-FPN, its norms frozen, with seeded random weights."""
    import bridge.runtime.torchvision_ops  # noqa: F401

    # isort: split
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    _complete_torchvision()
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=3)
    for name, value in backbone.named_buffers():
        if name.endswith("bn3.weight"):
            value.mul_(0.3)  # sixteen blocks add up
    return FasterRCNN(
        backbone,
        CLASSES + 1,
        min_size=480,
        max_size=10_000,
        box_batch_size_per_image=rois,
        rpn_post_nms_top_n_train=1000,
        box_score_thresh=score_threshold,
    )


def _complete_torchvision() -> None:
    """Gives torchvision its own Python form of RoIAlign where it has no compiled one."""
    import torchvision
    from torchvision.ops.roi_align import _roi_align

    if torchvision.extension._has_ops():
        return
    python_form = _roi_align.__wrapped__

    def roi_align(features, boxes, output_size, spatial_scale, sampling_ratio):
        return python_form(features, boxes, spatial_scale, *output_size, sampling_ratio, False)

    torchvision.ops.poolers.roi_align = roi_align


def our_detector(model, rois: int):
    """(detector, parameters) with torchvision's weights and conventions."""
    from bridge.weights.faster_rcnn_torchvision import TORCHVISION
    from bridge.weights.r50_fpn import to_ours
    from weaksam_jax.detectors.faster_rcnn import FasterRcnn
    from weaksam_jax.detectors.faster_rcnn.recipes import voc07
    from weaksam_jax.engine.weights import unflatten

    config = change(
        voc07(),
        {
            "model.backbone": "resnet50",
            "model.aligned": False,
            "model.round_anchors": True,
            "loss.roi_batch": rois,
            "loss.smooth_l1_beta": 1 / 9,
            "loss.drop": None,
            "optim.batch_size": 1,
            "test.score_threshold": 0.0,
        },
    )
    state = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    return FasterRcnn(config, CLASSES), unflatten(to_ours(state, TORCHVISION, "torchvision"))


def objects(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes float32 `[5, 4]` and labels int32 `[5]`."""
    rng, (height, width) = np.random.default_rng(1), size
    corner = rng.uniform(0, 0.5, (OBJECTS, 2)) * (width, height)
    side = rng.uniform(0.2, 0.45, (OBJECTS, 2)) * (width, height)
    boxes = np.concatenate([corner, corner + side], 1).astype(np.float32)
    return boxes, rng.integers(0, CLASSES, OBJECTS).astype(np.int32)


def step_case(rois: int = 512, size: tuple[int, int] = (480, 640)) -> Case:
    """One training step."""

    def case() -> Entry:
        model = torchvision_model(rois).train()
        model.transform.min_size = (min(size),)
        detector, params = our_detector(model, rois)
        image, targets = random_image(0, *size), objects(size)
        ours = our_step(detector, params, image, targets=targets)
        theirs = torchvision_step(model, [image], targets=targets, lr=detector.config.optim.lr)
        first = ours(), theirs()  # compiles; every timed call is a later step

        def agree(*_) -> str:
            return f"first losses {first[0]:.3f} and {first[1]:.3f}, of other random RoIs"

        work = f"Faster R-CNN R50-FPN step, one image of {size[0]}x{size[1]}, {rois} RoIs"
        return Entry(work, ours, "torchvision", other=theirs, agree=agree)

    return case


def our_step(detector, params, image: np.ndarray, targets) -> Callable[[], float]:
    """A training step of ours that returns its loss."""
    import jax

    from weaksam_jax.engine.mesh import data_mesh, put_batch
    from weaksam_jax.engine.step import create_state, make_train_step
    from weaksam_jax.engine.train import frozen_loss

    tx, mesh = detector.optimizer(), data_mesh()
    state = [create_state(params, tx, jax.random.key(0), mesh=mesh)]
    boxes, labels = targets
    batch = {
        "image": image[None],
        "size": np.asarray([image.shape[:2]], np.float32),
        "boxes": boxes[None],
        "labels": labels[None],
        "valid": np.ones((1, OBJECTS), bool),
    }
    batch, step = put_batch(batch, mesh), make_train_step(frozen_loss(detector), tx, mesh)

    def ours() -> float:
        state[0], metrics = step(state[0], batch)
        return float(metrics["loss"])

    return ours


def torchvision_step(
    model, images: Sequence[np.ndarray], targets, *, lr: float, precision: Precision = "float32"
) -> Callable[[], float]:
    """As `our_step`, torchvision's, of images with the same objects; where the model is."""
    free = [value for value in model.parameters() if value.requires_grad]
    sgd = torch.optim.SGD(free, lr, 0.9, weight_decay=1e-4)
    shown, place = shown_to(model, images), free[0].device
    boxes, labels = (torch.from_numpy(one).to(place) for one in targets)
    target = {"boxes": boxes, "labels": labels.long() + 1}
    layers = torch_side.layers(precision)

    def theirs() -> float:
        sgd.zero_grad()
        with layers:
            loss = sum(model(shown, [target] * len(shown)).values())
        loss.backward()
        sgd.step()
        return loss.item()

    return theirs


def shown_to(model, images: Sequence[np.ndarray]) -> list[torch.Tensor]:
    """uint8 `[H, W, 3]` images as torchvision's detectors take them, where the model is."""
    place = next(model.parameters()).device
    return [torch.from_numpy(one).to(place).permute(2, 0, 1) / 255 for one in images]


def rcnn_inference(size: tuple[int, int] = (480, 640)) -> Entry:
    """One inference with 1000 proposals and 100 detections."""
    import jax

    model = torchvision_model(512).eval()
    detector, params = our_detector(model, 512)
    image = random_image(0, *size)
    batch = {"image": image[None], "size": np.asarray([size], np.float32)}
    shown = shown_to(model, [image])
    run, on_device = jax.jit(detector.predict), jax.device_put((params, batch))

    def theirs():
        with torch.no_grad():
            found = model(shown)[0]
        return found["boxes"].numpy(), found["scores"].numpy()

    def agree(ours, other) -> str:
        boxes, scores = np.asarray(ours.boxes[0]), np.asarray(ours.scores[0])
        count = min(len(other[1]), len(scores))
        worst = np.abs(boxes[:count] - other[0][:count]).max()
        apart = np.abs(scores[:count] - other[1][:count]).max()
        return f"{count} detections, scores within {apart:.1e}, boxes within {worst:.2g} px"

    work = f"Faster R-CNN R50-FPN inference, one image of {size[0]}x{size[1]}, 1000 proposals"
    ours = lambda: jax.block_until_ready(run(*on_device))  # noqa: E731
    ours(), theirs()  # compiles, and warms up
    return Entry(work, ours, "torchvision", other=theirs, agree=agree)


GROWTH = ((128, (480, 640)), (1024, (480, 640)), (512, (800, 1088)))
CASES = {
    "rcnn_step": step_case(),
    "rcnn_inference": rcnn_inference,
    **{f"rcnn_step_{n}_{c[0]}x{c[1]}": step_case(n, c) for n, c in GROWTH},
}
