"""A trained detector on photos: `weaksam_jax.load`, which gives in Python what `predict` does.

import weaksam_jax
detector = weaksam_jax.load("runs/mine")
found = detector("beach.jpg")      # found.boxes, .scores, .labels, .names, .masks
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from itertools import islice
from pathlib import Path

import numpy as np

from weaksam_jax.data.images import load_image
from weaksam_jax.data.records import TagRecord, TagSplit
from weaksam_jax.data.views import ImageViews
from weaksam_jax.detectors import RETRAINERS, Detector, load_detector
from weaksam_jax.engine.compilation_cache import enable_compilation_cache
from weaksam_jax.engine.predict import Found, detect_images, tag_factors
from weaksam_jax.engine.step import Params
from weaksam_jax.errors import BadInput, did_you_mean
from weaksam_jax.files import read_metadata
from weaksam_jax.ranges import Share, first_fault
from weaksam_jax.run_folder import RunFolder
from weaksam_jax.settings import change

# (image uint8 `[H, W, 3]`, boxes float32 `[n, 4]`) -> masks as bits, uint8 `[n, H, ceil(W / 8)]`
# (`numpy.packbits` of each row): a hundred masks of a large photo would fill the memory otherwise
MaskNetwork = Callable[[np.ndarray, np.ndarray], np.ndarray]
# image uint8 `[H, W, 3]` -> logits float32 `[C]` of the classes in it
TagNetwork = Callable[[np.ndarray], np.ndarray]
PLUGINS = "weaksam_jax.plugins"  # entry points by which the PyTorch side offers its networks


@dataclass(frozen=True)
class PhotoDetections:
    """What was found in a photo, best first.

    image: the photo, uint8 RGB `[H, W, 3]`, upright. boxes: float32 `[n, 4]` (x1, y1, x2, y2 in its
    pixels); scores: float32 `[n]`; labels: int `[n]`, class indices; names: their names; packed:
    the masks as bits, uint8 `[n, H, ceil(W / 8)]`, or None without a mask network.
    """

    image: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    packed: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def masks(self) -> np.ndarray | None:
        """bool `[n, H, W]`, or None without a mask network."""
        if self.packed is None:
            return None
        return np.unpackbits(self.packed, axis=-1, count=self.image.shape[1]).view(bool)


@dataclass(frozen=True)
class PhotoDetector:
    """A detector with its parameters, called on photos (paths, or uint8 RGB arrays `[H, W, 3]`).

    threshold: least score of what is kept. masks: what makes masks of the boxes; tags: what weighs
    the scores, for a config with `test.tag_power`.
    """

    detector: Detector
    params: Params
    threshold: float = 0.3
    masks: MaskNetwork | None = None
    tags: TagNetwork | None = None

    def __post_init__(self):
        if fault := first_fault(Share, self.threshold):
            raise BadInput("threshold", fault.problem, fault.hint)
        if self.detector.on_proposals:
            hint = "give a retrained detector; experiments.detect runs this one on proposals"
            raise BadInput(
                f"the detector ({self.detector.kind})", "needs proposals of every photo", hint
            )
        object.__setattr__(self, "_predictor", self.detector.predictor(self.params))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes ("class 0", ... where the file names none)."""
        known = self.detector.classes
        return tuple(f"class {i}" for i in range(known)) if isinstance(known, int) else known

    def __call__(self, photo: str | Path | np.ndarray) -> PhotoDetections:
        """What is in one photo. Raises `BadInput` when the file is no image."""
        return next(self.many([photo], batch_size=1))

    def many(
        self, photos: Iterable[str | Path | np.ndarray], batch_size: int | None = None
    ) -> Iterator[PhotoDetections]:
        """What is in each photo, in order; holds `batch_size` photos at a time [the config's]."""
        size = batch_size or self.detector.config.test.batch_size
        photos = iter(photos)
        while chunk := list(islice(photos, size)):
            images = [one if isinstance(one, np.ndarray) else load_image(one) for one in chunk]
            for image, found in zip(images, self._detect(images, size), strict=True):
                yield self._result(image, found)

    def _detect(self, images: Sequence[np.ndarray], batch_size: int) -> list[Found]:
        test, predictor = self.detector.config.test, self._predictor
        logits = np.stack([self.tags(image) for image in images]) if self.tags else None
        views = ImageViews(
            self._split(images),
            test.tta_scales,
            tta_flip=test.tta_flip,
            batch_size=batch_size,
            class_factors=tag_factors(test.tag_power, logits),
            load=lambda record: images[record.image_id],
        )
        found = dict(detect_images(predictor, views))
        return [found[index] for index in range(len(images))]

    def _split(self, images: Sequence[np.ndarray]) -> TagSplit:
        records = tuple(
            TagRecord(
                index, f"{index}", Path(), width=image.shape[1], height=image.shape[0], tags=()
            )
            for index, image in enumerate(images)
        )
        return TagSplit(
            "photos",
            "predict",
            self.classes,
            category_ids=tuple(range(len(self.classes))),
            records=records,
        )

    def _result(self, image: np.ndarray, found: Found) -> PhotoDetections:
        keep = found.scores >= self.threshold
        boxes, labels = found.boxes[keep].astype(np.float32), found.labels[keep]
        packed = None
        if self.masks is not None:
            none = np.zeros((0, image.shape[0], -(-image.shape[1] // 8)), np.uint8)
            packed = self.masks(image, boxes) if len(boxes) else none
        names = tuple(self.classes[label] for label in labels)
        return PhotoDetections(
            image, boxes, found.scores[keep], labels=labels, names=names, packed=packed
        )


def load(
    path: str | Path,
    *,
    threshold: float = 0.3,
    masks: bool = True,
    sam: str | Path | None = None,
    clues: str | Path | None = None,
    detector: str | None = None,
) -> PhotoDetector:
    """The detector of a run folder, or of a weights file (which has boxes alone, and scores that
    no clue network weighs).

    threshold: least score of what is kept. masks: whether the run's SAM turns boxes into masks.
    sam, clues: in place of the run's networks; files that the run names outside of its own folder
    are only read when they are given here. detector: which of several that the run retrained, such
    as "dino" (None: the first that its --retrain named). Raises `BadInput` when the run is not
    finished, the file is no detector, or `sam`, `clues` or `detector` is given with a weights file.
    """
    enable_compilation_cache()
    path = Path(path)
    if not path.is_dir():
        own, params = load_detector(path)
        for name, given in (("sam", sam), ("clues", clues), ("detector", detector)):
            if given is not None:
                hint = "give the run folder, or leave it out"
                raise BadInput(path, f"is a file of weights, with which {name} is not used", hint)
        if not own.on_proposals and own.config.test.tag_power:
            own = replace(own, config=change(own.config, {"test.tag_power": 0.0}))
        return PhotoDetector(own, params, threshold)
    chosen = {"sam": sam, "clues": clues, "detector": detector}
    return of_run(RunFolder(path), threshold, plugin, masks=masks, **chosen)


def of_run(
    folder: RunFolder,
    threshold: float,
    networks: Callable[[str], Callable],
    *,
    masks: bool,
    sam: str | Path | None = None,
    clues: str | Path | None = None,
    detector: str | None = None,
) -> PhotoDetector:
    """A retrained detector of a run with the networks beside it.

    networks: gives what makes them by name, see `plugin`; asked for those that are needed alone.
    sam, clues, detector: as in `load`. Raises `BadInput` when the run has not finished the stage.
    """
    stage = retrained_stage(folder, detector)
    for path in (folder.mark(stage), folder.weights(stage)):
        if not path.exists():
            problem = f"has no finished stage {stage} ({path.relative_to(folder.root)} is missing)"
            raise BadInput(folder.root, problem, "finish it with the command that began it")
    own, params = load_detector(folder.weights(stage))
    prompted = networks("masks")(folder, sam) if masks else None
    tags = None
    if own.config.test.tag_power:
        tags = networks("tags")(folder, own.classes, clues)
    return PhotoDetector(own, params, threshold, masks=prompted, tags=tags)


def retrained_stage(folder: RunFolder, detector: str | None) -> str:
    """The stage of a run whose detector is meant: the first that it retrains (None), or the one of
    that row of `RETRAINERS`. `BadInput` when it is no such row, or the run has none of it."""
    if detector is None:
        return "retrain"
    if detector not in RETRAINERS:
        hint = did_you_mean(detector, RETRAINERS, f"choose from {', '.join(RETRAINERS)}")
        raise BadInput("--detector", f"{detector} is no detector that is retrained", hint)
    further = f"retrain_{detector}"
    if folder.mark(further).exists():
        return further
    first = folder.weights("retrain")
    if first.exists() and read_metadata(first).get("detector") == detector:
        return "retrain"
    problem = f"has no finished {detector} (stage retrain or {further})"
    raise BadInput(folder.root, problem, f"retrain it, too: name {detector} in --retrain")


def plugin(name: str) -> Callable[..., Callable]:
    """What an installed package offers under that name: "masks" `(folder: RunFolder, given) ->
    MaskNetwork`, "tags" `(folder: RunFolder, classes, given) -> TagNetwork`; given: the network
    that the user names, None for the run's.

    `bridge` offers both; this side never imports it.
    """
    found = entry_points(group=PLUGINS, name=name)
    if not found:
        hint = "install this project with pip (an editable install that is old: once more)"
        raise BadInput(f"the plugin {name}", "is not installed", hint)
    return next(iter(found)).load()
