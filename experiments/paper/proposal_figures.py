"""The pictures of `experiments.paper.proposals`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.paper.proposal_stores import Stored
from weaksam_jax.data.images import load_image
from weaksam_jax.data.records import TagSplit
from weaksam_jax.data.store import SOURCES
from weaksam_jax.detectors.mil.evidence import box_sums
from weaksam_jax.errors import BadInput
from weaksam_jax.files import write_json
from weaksam_jax.progress import progress_bar
from weaksam_jax.report.draw import save_png
from weaksam_jax.report.proposal_pictures import proposal_sheet, similarity_picture

# Proposals of a source whose features are compared (the paper's Fig. 4).
COMPARED = 200
# Long side in pixels at which Lite0 sees a photo.
LONG_SIDE = 512


def photos(split: TagSplit, stores: Sequence[Stored], out: Path) -> str:
    """`<out>/photos/<store>-<image id>.png` for every store and image; says where they are."""
    folder = out / "photos"
    for stored in stores:
        proposals = stored.of(SOURCES)
        for record, own in zip(split.records, proposals, strict=True):
            name = f"{stored.name.replace(' ', '-')}-{record.image_id}.png"
            save_png(folder / name, proposal_sheet(load_image(record.path), own))
    return f"{len(stores) * len(split.records)} pictures written to {folder}"


def similarity(split: TagSplit, stores: Sequence[Stored], out: Path, seed: int = 0) -> str:
    """`<out>/similarity.png` and `.json`: likeness of the RoI features of each source's proposals.

    Of every source of every store up to `COMPARED` proposals are drawn at random from all images
    and sorted by image, so that likeness within an image shows as blocks on the diagonal. Features
    are the 1280 of EfficientNet-Lite0, averaged over the box. The figures are means over pairs of
    different proposals: of the same image, of different images, and of all.
    """
    rng = np.random.default_rng(seed)
    picked = {}  # name -> (rows of images, boxes)
    for stored in stores:
        boxes = {name: stored.boxes([name]) for name in stored.sources}
        for name, own in boxes.items():
            image = np.repeat(np.arange(len(own)), [len(one) for one in own])
            index = np.sort(rng.permutation(len(image))[:COMPARED])
            label = name if len(stores) == 1 else f"{stored.name}: {name}"
            picked[label] = image[index], np.concatenate(own)[index]
    if not picked:
        raise BadInput(out, "has no proposal to compare", "give another store or more images")
    features = roi_features(split, picked)
    matrices = {name: cosine(one) for name, one in features.items()}
    figures = {name: _means(matrices[name], picked[name][0]) for name in matrices}
    notes = {name: f"{one['boxes']} boxes, mean {one['all']:.2f}" for name, one in figures.items()}
    save_png(out / "similarity.png", similarity_picture(matrices, notes))
    write_json(out / "similarity.json", {"images": len(split.records), "sources": figures}, 1)
    rows = [
        f"{name}: {one['boxes']} boxes; mean cosine {one['all']:.3f}"
        + "".join(f", {key} {one[key]:.3f}" for key in ("same image", "other images") if key in one)
        for name, one in figures.items()
    ]
    return "\n".join([*rows, f"written to {out / 'similarity.png'}"])


def roi_features(
    split: TagSplit, picked: dict[str, tuple[np.ndarray, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Sums `[n, 1280]` of Lite0's features inside the boxes of each entry (row of image, box).

    A sum has the direction of the mean, and direction is all that a cosine sees.
    """
    import torch

    from bridge.clues.lite_cam import LiteBackbone, lite_input

    backbone, found = LiteBackbone(), {name: [None] * len(own[0]) for name, own in picked.items()}
    for row, record in enumerate(progress_bar(split.records, "features")):
        wanted = {name: np.flatnonzero(image == row) for name, (image, _) in picked.items()}
        if not any(len(index) for index in wanted.values()):
            continue
        with torch.inference_mode():
            deep = backbone(lite_input(load_image(record.path), LONG_SIDE)[None])[0][0].numpy()
        scale = np.asarray([deep.shape[2] / record.width, deep.shape[1] / record.height] * 2)
        for name, index in wanted.items():
            for place, one in zip(
                index, box_sums(deep, picked[name][1][index] * scale), strict=True
            ):
                found[name][place] = one
    return {name: np.stack(rows) for name, rows in found.items()}


def cosine(features: np.ndarray) -> np.ndarray:
    """Cosine similarities `[n, n]` of rows `[n, d]`; 0 for a row of zeros."""
    norm = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features / np.where(norm > 0, norm, 1)
    return unit @ unit.T


def _means(matrix: np.ndarray, image: np.ndarray) -> dict[str, float]:
    """Number of proposals and mean similarity of pairs; a kind without pairs is left out."""
    pairs = ~np.eye(len(matrix), dtype=bool)
    same = image[:, None] == image[None]
    kinds = {"all": pairs, "same image": pairs & same, "other images": pairs & ~same}
    means = {name: float(matrix[kind].mean()) for name, kind in kinds.items() if kind.any()}
    return {"boxes": len(matrix), "all": 1.0, **means}
