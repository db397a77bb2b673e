"""Cached maps are those of an image's content and of the backbone's weights, not of an id."""

import numpy as np
from PIL import Image

from weaksam_jax.data.records import TagRecord, TagSplit
from weaksam_jax.data.views import View
from weaksam_jax.detectors.mil.features import cache_maps

SCALES = (((16, 16),),)
BACKBONE = {"a": np.array([1.0, -2.0], np.float32), "b": np.array([3.0], np.float32)}


def split(folder, colours) -> TagSplit:
    """One image for each grey value, all of the ids 0, 1, ..., one size and as many bytes."""
    folder.mkdir()
    records = []
    for image_id, colour in enumerate(colours):
        path = folder / f"{image_id}.bmp"
        Image.new("RGB", (16, 16), (colour,) * 3).save(path)
        records.append(TagRecord(image_id, path.name, path, 16, 16, (0,)))
    return TagSplit("photos", "train", ("cat",), (1,), tuple(records))


def filled(where, images, backbone=BACKBONE):
    """(mean of each image's map, images that were computed) of a cache in `where`."""
    seen = []

    def maps_of(pixels, sizes):
        means = pixels.mean((1, 2, 3)) * backbone["a"][0]
        seen.extend(means.tolist())
        return {"maps": means[:, None, None, None].astype(np.float16)}

    cache = cache_maps(
        images, SCALES, where, backbone=backbone, stated=[], maps_of=maps_of, batch_size=1
    )
    maps = [cache.read(one.image_id, View(0, False))["maps"].item() for one in images.records]
    return maps, len(seen)


def test_another_data_set_with_the_same_ids(tmp_path):
    first, second = split(tmp_path / "one", (10, 20)), split(tmp_path / "two", (30, 20))
    assert filled(tmp_path / "run", first) == ([10, 20], 4)  # plain and mirrored
    assert filled(tmp_path / "run", second) == ([30, 20], 2), "one image is the same"
    assert filled(tmp_path / "run", first) == ([10, 20], 0)


def test_weights_of_the_same_size_are_other_weights(tmp_path):
    images = split(tmp_path / "one", (10,))
    assert filled(tmp_path / "run", images) == ([10], 2)
    turned = {"a": BACKBONE["a"][::-1], "b": BACKBONE["b"]}
    assert filled(tmp_path / "run", images, turned) == ([-20], 2)


def test_a_file_that_a_power_cut_emptied_is_made_again(tmp_path):
    images = split(tmp_path / "one", (10,))
    filled(tmp_path / "run", images)
    for path in (tmp_path / "run").rglob("*.safetensors"):
        path.write_bytes(b"")
    assert filled(tmp_path / "run", images) == ([10], 2)
