"""Segment hierarchies of unlabelled photos, as training masks without any annotation.

    python -m bridge.sam.mini.photos --images VOC2007/JPEGImages \\
        --list VOC2007/ImageSets/Main/train.txt --out runs/photos

The idea is that of unsupervised SAM training (UnSAM, Wang et al. 2024): small regions are
merged bottom-up by similarity, and regions that stay unmerged for long are kept as masks.
Here the leaves are Felzenszwalb regions, and the similarity is colour, edge strength along
the common border and frozen Lite0 features. Photos are squashed to squares.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from weaksam_jax.data.pixel_statistics import LITE0_MEAN, LITE0_STD

SIDE = 384  # stored photos, pixels
LEAF_SIDE = 256  # where the leaves are found
WEIGHTS = {"colour": 1.0, "edge": 1.0, "deep": 3.0}
MAX_MASKS = 40
MIN_SHARE, MAX_SHARE = 0.001, 0.7  # of the image area


def leaf_regions(lab: np.ndarray) -> np.ndarray:
    """Felzenszwalb regions of a Lab image in 0..1: int [s, s], numbered from 0."""
    from skimage.segmentation import felzenszwalb  # scikit-image: for this command only

    leaves = felzenszwalb(lab, scale=40, sigma=0.8, min_size=50, channel_axis=2)
    return np.unique(leaves, return_inverse=True)[1].reshape(leaves.shape)


def deep_maps(photo: np.ndarray, backbone: nn.Module) -> np.ndarray:
    """Lite0 maps of strides 8, 16, 32, each centred and of unit norm: [64, 64, c]."""
    x = torch.from_numpy(photo).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        features = backbone((x - LITE0_MEAN) / LITE0_STD)[2:]
    maps = []
    for f in features:
        f = f - f.mean((2, 3), keepdim=True)
        f = f / f.square().sum(1, keepdim=True).mean().sqrt()
        maps.append(F.interpolate(f, size=(64, 64), mode="bilinear", align_corners=False))
    return torch.cat(maps, 1)[0].permute(1, 2, 0).numpy()


def leaf_means(leaves: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """Mean of values [s, s, c] (or a coarser square grid) over every leaf: [count, c]."""
    step = leaves.shape[0] // values.shape[0]
    flat = leaves[step // 2 :: step, step // 2 :: step].ravel()
    values = values.reshape(len(flat), -1)
    total = np.stack([np.bincount(flat, v, count) for v in values.T], 1)
    number = np.bincount(flat, minlength=count)[:, None]
    mean = total / np.maximum(number, 1)
    missed = np.flatnonzero(number[:, 0] == 0)
    for leaf in missed:  # a leaf between the samples of the coarse grid
        y, x = np.argwhere(leaves == leaf).mean(0).astype(int) // step
        mean[leaf] = values[y * (leaves.shape[0] // step) + x]
    return mean


def borders(leaves: np.ndarray, edges: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Length of, and summed edge strength along, all common borders: two [count, count]."""
    length, strength = np.zeros((count, count)), np.zeros((count, count))
    for a, b, e in (
        (leaves[:, :-1], leaves[:, 1:], np.maximum(edges[:, :-1], edges[:, 1:])),
        (leaves[:-1], leaves[1:], np.maximum(edges[:-1], edges[1:])),
    ):
        cut = a != b
        np.add.at(length, (a[cut], b[cut]), 1)
        np.add.at(strength, (a[cut], b[cut]), e[cut])
    return length + length.T, strength + strength.T


def edge_map(lab: np.ndarray) -> np.ndarray:
    """Gradient magnitude of a Lab image, at most 1 at its 95th percentile: [s, s]."""
    smooth = cv2.GaussianBlur(lab, (0, 0), 1.0)
    dx, dy = cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)
    magnitude = np.sqrt((dx**2 + dy**2).sum(2))
    return np.minimum(magnitude / max(np.percentile(magnitude, 95), 1e-3), 1)


def merge_tree(
    area: np.ndarray, colour: np.ndarray, deep: np.ndarray, length: np.ndarray, edge: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Merge the most alike neighbours until one region is left.

    area [n], colour [n, 3] and deep [n, c] are means; length, edge [n, n] as from `borders`
    (all are overwritten). Returns members bool [2n - 1, n] of every node ever formed, and
    its persistence [2n - 1]: the share of the height of its end that it lived through.
    """
    n = len(area)
    members, born, died = list(np.eye(n, dtype=bool)), [0.0] * n, [np.inf] * n
    node = list(range(n))  # node of every row that is still alive
    distance = np.full((n, n), np.inf)

    def refresh(i: int) -> None:
        near = np.flatnonzero(length[i])
        if len(near) == 0:
            return
        apart = WEIGHTS["colour"] * np.linalg.norm(colour[near] - colour[i], axis=1) * 3
        apart += WEIGHTS["deep"] * np.linalg.norm(deep[near] - deep[i], axis=1)
        apart += WEIGHTS["edge"] * edge[i, near] / length[i, near]
        apart *= np.minimum(area[i], area[near]) ** 0.25  # small regions join early
        distance[i, near] = distance[near, i] = apart

    for i in range(n):
        refresh(i)
    height = 0.0
    for _ in range(n - 1):
        i, j = np.unravel_index(np.argmin(distance), distance.shape)
        if not np.isfinite(distance[i, j]):
            break
        height = max(height, distance[i, j])
        died[node[i]] = died[node[j]] = height
        members.append(members[node[i]] | members[node[j]])
        born.append(height)
        died.append(np.inf)
        share = area[i] / (area[i] + area[j])
        colour[i] = share * colour[i] + (1 - share) * colour[j]
        deep[i] = share * deep[i] + (1 - share) * deep[j]
        area[i] += area[j]
        for table in (length, edge):
            table[i] += table[j]
            table[:, i] = table[i]
            table[j] = table[:, j] = 0
            table[i, i] = 0
        distance[j] = distance[:, j] = np.inf
        distance[i] = distance[:, i] = np.inf
        node[i] = len(members) - 1
        refresh(i)
    died = np.minimum(died, 1.5 * height)
    return np.array(members), 1 - np.array(born) / np.maximum(died, 1e-9)


def choose(members: np.ndarray, persistence: np.ndarray, area: np.ndarray) -> np.ndarray:
    """The most persistent nodes of sensible size, no two of them alike (IoU > 0.8)."""
    size = members @ area
    total = area.sum()
    good = (size > MIN_SHARE * total) & (size < MAX_SHARE * total) & (persistence > 0.08)
    # Leaves are born at height 0, so that their persistence says nothing: ask more of them.
    single = members.sum(1) == 1
    good &= ~single | (size > 0.005 * total)
    worth = np.where(single, 0.15, persistence) + 0.1 * np.log(size / total + 1e-9)
    kept: list[int] = []
    for i in sorted(np.flatnonzero(good), key=lambda k: -worth[k]):
        shared = (members[kept] & members[i]) @ area if kept else np.zeros(0)
        either = (members[kept] | members[i]) @ area if kept else np.ones(0)
        if not (shared > 0.8 * either).any():
            kept.append(i)
        if len(kept) == MAX_MASKS:
            break
    return members[kept]


def hierarchy(photo: np.ndarray, backbone: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    """Photo uint8 RGB [SIDE, SIDE, 3] -> leaves [256, 256] and masks as sets of leaves."""
    small = cv2.resize(photo, (LEAF_SIDE, LEAF_SIDE), interpolation=cv2.INTER_AREA)
    lab = cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2LAB) / 100
    leaves = leaf_regions(lab)
    count = int(leaves.max()) + 1
    area = np.bincount(leaves.ravel(), minlength=count).astype(float)
    length, strength = borders(leaves, edge_map(lab), count)
    colour = leaf_means(leaves, lab, count)
    deep = leaf_means(leaves, deep_maps(photo, backbone), count)
    members, persistence = merge_tree(area.copy(), colour, deep, length=length, edge=strength)
    return leaves.astype(np.uint16), choose(members, persistence, area)


class PhotoFolder:
    """The hierarchies that this module's command wrote, as training examples."""

    def __init__(self, folder: str | Path, size: int):
        self.size, self.paths = size, sorted(Path(folder).glob("*.npz"))
        if not self.paths:
            raise FileNotFoundError(f"{folder}: no hierarchies; run bridge.sam.mini.photos")

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        with np.load(self.paths[index % len(self.paths)]) as stored:
            photo = cv2.imdecode(stored["jpeg"], cv2.IMREAD_COLOR)[..., ::-1]
            return photo, stored["leaves"], stored["members"]

    def images(self) -> list[np.ndarray]:
        """Up to 200 of the photos, as fills for scenes."""
        step = max(1, len(self.paths) // 200)
        return [np.ascontiguousarray(self.read(i)[0]) for i in range(0, len(self.paths), step)]

    def example(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Photo uint8 [size, size, 3] and masks bool [n, size, size], in shuffled order."""
        epoch, place = divmod(index, len(self.paths))
        order = np.random.default_rng(epoch).permutation(len(self.paths))
        photo, leaves, members = self.read(order[place])
        both = (self.size, self.size)
        photo = cv2.resize(np.ascontiguousarray(photo), both, interpolation=cv2.INTER_AREA)
        leaves = cv2.resize(leaves, both, interpolation=cv2.INTER_NEAREST)
        return photo, members[:, leaves]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", required=True, help="folder of JPEG files")
    parser.add_argument("--list", help="text file of image names without ending; default all")
    parser.add_argument("--out", required=True)
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after; resumable")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()

    from bridge.sam.mini.model import Lite0Backbone

    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    end = time.monotonic() + 60 * options.minutes
    backbone, out = Lite0Backbone(), Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    if options.list:
        names = Path(options.list).read_text().split()
    else:
        names = sorted(path.stem for path in Path(options.images).glob("*.jpg"))
    for name in names:
        target = out / f"{name}.npz"
        if target.exists():
            continue
        if time.monotonic() > end:
            break
        photo = cv2.imread(str(Path(options.images) / f"{name}.jpg"), cv2.IMREAD_COLOR)[..., ::-1]
        photo = cv2.resize(photo, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        leaves, members = hierarchy(np.ascontiguousarray(photo), backbone)
        _, jpeg = cv2.imencode(".jpg", photo[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
        partial = target.with_suffix(".tmp")
        with partial.open("wb") as file:
            np.savez_compressed(file, jpeg=jpeg, leaves=leaves, members=members)
        partial.replace(target)
    print(f"{len(list(out.glob('*.npz')))} of {len(names)} hierarchies in {out}")


if __name__ == "__main__":
    main()
