"""Pseudo ground truth as training samples: COCO dictionary -> padded, augmented arrays."""

from collections.abc import Mapping

import numpy as np

from weaksam_jax.boxes import clip, from_xywh
from weaksam_jax.data.augment import AugmentConfig, crop_and_resize
from weaksam_jax.data.detections import BadDetections, annotation_arrays, annotation_rows
from weaksam_jax.data.images import load_image
from weaksam_jax.data.padding import pad_boxes
from weaksam_jax.data.records import TagSplit
from weaksam_jax.data.scales import Scale, Shown, bucket_of, check_scales, shown_at


class PseudoSamples:
    """The images of a split that have pseudo boxes; images without are left out of training.

    pgt: COCO dictionary (`annotations` with `image_id`, `category_id`, `bbox` xywh); images: the
    split it was made for. buckets: which padded size of a scale each sample is shown in. max_boxes:
    the padded length G, the largest count rounded up to a multiple of 8, so no box is cut off.
    Raises `BadDetections` when the dictionary does not belong to the split or has no box
    (`weaksam_jax.data.detections.naming` names its file).
    """

    def __init__(
        self,
        pgt: Mapping,
        images: TagSplit,
        scales: tuple[Scale, ...],
        augment: AugmentConfig,
    ):
        truth = _read(pgt, images)
        self._records = [record for record in images.records if record.image_id in truth]
        if not self._records:
            hint = "lower the score threshold of the pseudo ground truth or train the MIL longer"
            raise BadDetections("have no box for any image of the split", hint)
        self._truth = [truth[record.image_id] for record in self._records]
        self._augment = augment
        check_scales(scales)
        self.scales = scales
        self.buckets = [bucket_of(record, scales) for record in self._records]
        most = max(len(labels) for _, labels in self._truth)
        self.max_boxes = -(-most // 8) * 8

    def draw(self, bucket: int, rng: np.random.Generator) -> Shown:
        """How a batch is shown: as its bucket is at a random scale."""
        return shown_at(self.scales[int(rng.integers(len(self.scales)))], bucket)

    def example(self) -> dict[str, np.ndarray]:
        """A batch of one image, for `init`: its shapes count and not its values."""
        rng = np.random.default_rng(0)
        sample = self(0, shown_at(self.scales[0], self.buckets[0]), rng)
        return {name: np.asarray(value)[None] for name, value in sample.items()}

    def __len__(self) -> int:
        return len(self._records)

    def __call__(self, index: int, shown: Shown, rng: np.random.Generator) -> dict:
        """One sample: `image` uint8 `[H, W, 3]`, `size` float32 `[2]` (height, width) within the
        padded size, `boxes` float32 `[G, 4]`, `labels` int32 `[G]`, `valid` bool `[G]`,
        `image_id` int64."""
        record, (boxes, labels) = self._records[index], self._truth[index]
        image = load_image(record.path)
        image, boxes, inside, size = crop_and_resize(
            image, boxes, shown, rng=rng, config=self._augment
        )
        boxes, valid = pad_boxes(boxes[inside], self.max_boxes)
        return {
            "image": image,
            "size": np.asarray(size, np.float32),
            "boxes": boxes,
            "labels": pad_boxes(labels[inside], self.max_boxes)[0],
            "valid": valid,
            "image_id": np.int64(record.image_id),
        }


def _read(pgt: Mapping, images: TagSplit) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Image id -> (boxes float32 `[n, 4]`, labels int32 `[n]`), only images with boxes; crowds are
    left out."""
    crowd, table = annotation_rows(pgt).flags("iscrowd"), annotation_arrays(pgt, images)
    sizes = [(record.width, record.height) for record in images.records]
    found: dict[int, list] = {}
    for index in np.flatnonzero(~crowd).tolist():
        image = int(table.image[index])
        box = clip(from_xywh(table.xywh[index].astype(np.float32)), *sizes[image])
        if min(box[2:] - box[:2]) > 0:
            own = found.setdefault(images.records[image].image_id, [])
            own.append((box, table.labels[index]))
    return {
        image_id: (np.stack([box for box, _ in own]), np.asarray([c for _, c in own], np.int32))
        for image_id, own in found.items()
    }
