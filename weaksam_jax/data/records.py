"""What a training stage may see, and what only evaluation may see, as two types.

`TagSplit` carries image-level tags and nothing else: every trainer takes it. `TruthSplit` carries
boxes and masks: only `weaksam_jax.evaluate` and the report take it. There is no function from the
second to the first, and neither holds a path back to the annotation file, so no code path can hand
boxes to a trainer.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from weaksam_jax.boxes import to_xywh


@dataclass(frozen=True)
class TagRecord:
    """One image and its tags.

    width, height: pixels of the upright image. tags: sorted class indices (0-based); empty means a
    negative image, unless `uncertain`: its only objects are difficult or crowds, so that it is an
    example of nothing.
    """

    image_id: int
    file_name: str
    path: Path
    width: int
    height: int
    tags: tuple[int, ...]
    uncertain: bool = False


@dataclass(frozen=True)
class TruthRecord:
    """One image and its annotated objects, for evaluation only.

    boxes: float64 `[n, 4]` (see `weaksam_jax.boxes`). labels: int32 `[n]`, class index. difficult,
    crowd: bool `[n]`. masks: COCO RLE dictionaries, one per object (None where it has none), or
    None when the data set has no masks for this image. written: float64 `[n, 4]`, x y width height
    as they stand in the file, or None where it has corners.
    """

    image_id: int
    file_name: str
    path: Path
    width: int
    height: int
    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray
    crowd: np.ndarray
    masks: tuple[dict | None, ...] | None = None
    written: np.ndarray | None = None

    @property
    def xywh(self) -> np.ndarray:
        """The boxes as x y width height, float64 `[n, 4]`: what figures are measured with.

        (Corners and back, a width is another number in its last bit, and an IoU that is just 0.5
        is then less.)
        """
        return to_xywh(self.boxes.astype(np.float64)) if self.written is None else self.written


@dataclass(frozen=True)
class TagSplit:
    """A split for training and prediction.

    category_ids: the ids that COCO JSON files use, one per class.
    """

    dataset: str
    split: str
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    records: tuple[TagRecord, ...]


@dataclass(frozen=True)
class TruthSplit:
    """The truth of a split, for evaluation only."""

    dataset: str
    split: str
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    records: tuple[TruthRecord, ...]
