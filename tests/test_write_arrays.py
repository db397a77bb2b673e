"""safetensors files of the same content are the same bytes."""

import numpy as np
import safetensors.numpy

from weaksam_jax.files import read_arrays, write_arrays, write_text


def test_equal_content_gives_equal_bytes(tmp_path):
    arrays = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a": np.asarray([1, 2, 3], np.uint8),
        "empty": np.zeros((0, 4), np.float16),
        "größe": np.asarray([7], np.int64),
        "scalar": np.asarray(7, np.int64),
        "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    }
    metadata = {f"key{i}": f"ü{i}" for i in range(8)}
    for i in range(6):
        write_arrays(tmp_path / f"{i}.safetensors", arrays, dict(sorted(metadata.items())))
    backwards = dict(reversed(arrays.items())), dict(reversed(metadata.items()))
    write_arrays(tmp_path / "6.safetensors", *backwards)
    files = {path.read_bytes() for path in tmp_path.iterdir()}
    assert len(files) == 1
    found, text = read_arrays(tmp_path / "0.safetensors")
    assert text == metadata and found.keys() == arrays.keys()
    for name, value in arrays.items():
        np.testing.assert_array_equal(found[name], value)
        assert found[name].dtype == value.dtype and found[name].shape == value.shape
    plain = safetensors.numpy.load_file(tmp_path / "0.safetensors")
    np.testing.assert_array_equal(plain["b"], arrays["b"])


def test_names_as_long_as_a_disk_allows(tmp_path):
    for name in ("a" * 255, "猫" * 85, "é" * 125 + ".json"):
        write_text(tmp_path / name, "whole")
        assert (tmp_path / name).read_text() == "whole"
    assert len([*tmp_path.iterdir()]) == 3
