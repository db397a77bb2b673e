"""Pickles: good ones to the bit as NumPy reads them, hostile ones refused in little memory."""

import io
import itertools
import json
import pickle
import pickletools
import subprocess
import sys
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import pytest
from hostile_pickles import REFUSED, name, value

from bridge.weights import machine
from bridge.weights.machine import load
from bridge.weights.pickles import NUMPY, PLAIN, read_pickle
from bridge.weights.torchscript import is_torchscript
from weaksam_jax.errors import BadInput

SHAPES = [(), (0,), (1,), (7,), (0, 4), (3, 4), (2, 3, 4), (1, 1, 5, 1, 2)]
ROOT = Path(__file__).parents[3]


def loads(data: bytes):
    return load(io.BytesIO(data), len(data), NUMPY.get)


def laid_out(array):
    """The array in every order of memory, and as a part of a larger one."""
    yield array
    yield np.asfortranarray(array)
    yield array.T
    yield array[..., ::-1] if array.ndim else array
    yield np.moveaxis(array, 0, -1) if array.ndim > 2 else array


def random_bits(kind, shape):
    """Arrays of any bits (NaN, infinity, denormal numbers), in both byte orders."""
    count = int(np.prod(shape))
    data = np.random.default_rng(0).integers(0, 256, count * np.dtype(kind).itemsize, np.uint8)
    if kind == "b1":
        data %= 2
    for order in "<>":
        yield np.frombuffer(data.tobytes(), order + kind).reshape(shape)


@pytest.mark.parametrize("kind", PLAIN)
def test_every_array_is_read_to_the_bit(kind):
    count = 0
    for shape, protocol in itertools.product(SHAPES, range(6)):
        for one, array in itertools.product(range(5), random_bits(kind, shape)):
            array = list(laid_out(array))[one]
            data = pickle.dumps(array, protocol)
            found, expected = loads(data), pickle.loads(data)
            if not expected.dtype.isnative:  # NumPy keeps the byte order in protocol 5 alone
                expected = expected.byteswap().view(found.dtype)
            assert type(found) is np.ndarray and found.dtype == np.dtype(kind)
            assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
            assert found.tobytes() == expected.tobytes()
            assert found.flags.f_contiguous == expected.flags.f_contiguous
            count += 1
    assert count == len(SHAPES) * 6 * 5 * 2


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_and_scalars(protocol):
    for content in (
        {"a": [1, -1, 255, 70000, 2**31, -(2**40), 10**18, 2**100], 7: (), None: (1,), 1.5: b""},
        [True, False, None, 1.5, float("inf"), "", "é\n'\"\\", "\U0001f600", b"\0\xff", b"x" * 300],
        ((1, 2), (1, 2, 3), (1, 2, 3, 4), [[]], {}, "x" * 300, list(range(2000))),
        OrderedDict(a=1, b=OrderedDict()),
    ):
        assert loads(pickle.dumps(content, protocol)) == content
    for kind in PLAIN:
        scalar = np.dtype(kind).type(1)
        found = loads(pickle.dumps([scalar], protocol))[0]
        assert type(found) is type(scalar) and found == scalar
    shared = [np.ones(3)] * 3
    found = loads(pickle.dumps(shared, protocol))
    assert found[0] is found[1] is found[2]


# As Python 2.7 and NumPy 1.16 write np.array([[1, 255], [256, 513]], "u2"), protocols 0 and 2.
OLD_0 = (
    b"cnumpy.core.multiarray\n_reconstruct\np0\n(cnumpy\nndarray\np1\n(I0\ntp2\nS'b'\np3\ntp4\nRp5\n"
    b"(I1\n(L2L\nI2\ntp6\ncnumpy\ndtype\np7\n(S'u2'\np8\nI0\nI1\ntp9\nRp10\n(I3\nS'<'\np11\nNNN"
    b"I-1\nI-1\nI0\ntp12\nbI00\nS'\\x01\\x00\\xff\\x00\\x00\\x01\\x01\\x02'\np13\ntp14\nb."
)
OLD_2 = (
    b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85U\x01b\x87R"
    b"q\x03(K\x01K\x02K\x02\x86cnumpy\ndtype\nq\x04U\x02u2K\x00K\x01\x87Rq\x05(K\x03U\x01<NNNJ\xff"
    b"\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x08\x01\x00\xff\x00\x00\x01\x01\x02tb."
)


def test_pickles_of_python_2():
    for data in (OLD_0, OLD_2):
        assert loads(data).tolist() == [[1, 255], [256, 513]]
        assert loads(data).dtype == np.uint16
    ordered = name("collections", "OrderedDict") + value(([["a", 1], ["b", 2]],)) + b"R."
    assert loads(ordered) == {"a": 1, "b": 2}
    assert loads(b"S'\\xff\\x00'\n.") == "\xff\0"


def test_written_by_numpy_1(tmp_path):
    """NumPy 1 has the same functions in `numpy.core`."""
    for protocol in (2, 3, 4):
        array = np.arange(6, dtype=">f4").reshape(2, 3)
        new = pickle.dumps(array, protocol)
        old = new.replace(b"\x16numpy._core.multiarray", b"\x15numpy.core.multiarray")
        old = old.replace(b"cnumpy._core.", b"cnumpy.core.")
        assert old != new
        np.testing.assert_array_equal(loads(old), array)


@pytest.mark.parametrize("what", [one for one, data in REFUSED.items() if len(data) < 10_000])
def test_hostile_pickles_are_refused_in_one_line(tmp_path, what):
    (tmp_path / "a.pkl").write_bytes(REFUSED[what])
    with pytest.raises(BadInput) as caught:
        read_pickle(tmp_path / "a.pkl")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'a.pkl'}: is no readable pickle of arrays (")
    assert message.isprintable() and len(message) < len(str(tmp_path)) + 300


def test_hostile_pickles_and_mutants_in_little_memory():
    """All of them, and 3,000 mutants, in a process of its own with a limit of memory."""
    job = [sys.executable, str(ROOT / "tests/helpers/hostile_pickles.py"), "0", "3000"]
    paths = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(job, capture_output=True, text=True, timeout=300, env=paths)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    assert result["wrong"] == []
    assert result["read"] > 30 and result["refused"] > 2000 and result["slowest"] < 2
    assert result["read"] + result["refused"] == 3000


def test_every_listed_instruction_is_one_of_pickles():
    names = {one.name for one in pickletools.opcodes}
    assert set(machine._STEPS) <= names and "INST" in names
    assert not {"INST", "OBJ", "NEWOBJ_EX", "EXT1", "PERSID", "DUP"} & set(machine._STEPS)


@pytest.mark.parametrize("cut", range(0, 400, 7))
def test_a_pickle_cut_anywhere_is_refused(cut):
    data = pickle.dumps({"boxes": [np.ones((4, 4), np.uint16)] * 3, "indexes": [1, 2, 3]}, 4)
    assert len(data) > 200
    with pytest.raises(Exception) as caught:
        loads(data[: min(cut, len(data) - 1)])
    assert not isinstance(caught.value, MemoryError)


def test_what_is_no_file_is_not_opened(tmp_path):
    import os

    os.mkfifo(tmp_path / "fifo")
    kinds = {"fifo": "a pipe", "folder": "a folder", "none": "does not exist", "a\0b": "null byte"}
    (tmp_path / "folder").mkdir()
    for one, told in kinds.items():
        with pytest.raises(BadInput, match=told):
            read_pickle(tmp_path / one)
        assert not is_torchscript(tmp_path / one)
    with pytest.raises(BadInput, match="/dev/zero: is a pipe or device"):
        read_pickle("/dev/zero")


def test_a_counter_is_no_array(tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(Counter(a=1)))
    with pytest.raises(BadInput, match=r"it asks for collections\.Counter"):
        read_pickle(tmp_path / "a.pkl")
