"""`experiments.bench growth` and `padding`: what is measured, and what is said of it."""

import json

import pytest

from experiments.bench import growth, padding
from experiments.bench.growth import (
    AXES,
    BenchGrowth,
    Point,
    chosen,
    measured,
    points_of,
    run,
    table,
)
from experiments.bench.growth_worker import case_of
from experiments.bench.padding import coco_like, padding_of, places_of, recipes, voc2007
from weaksam_jax.data.scales import padded_sizes
from weaksam_jax.detectors import DETECTORS
from weaksam_jax.errors import BadInput


def test_points_vary_one_number_each_and_every_detector_has_them():
    options = BenchGrowth()
    for name in chosen(options):
        points = list(points_of(options, name))
        assert [one.axis for one in points] == [
            axis for axis, values in zip(AXES, (5, 5, 4, 4), strict=True) for _ in range(values)
        ]
        first = {one.axis: one for one in reversed(points)}
        jobs = [first[axis].job for axis in AXES]
        assert all(job == jobs[0] for job in jobs)  # all begin at one place
        for point in points:
            case = case_of({k: v for k, v in point.job.items() if k != "repeats"})
            assert case.images == (point.devices or 1) and case.detector == name
        assert len({str(one.job) for one in points}) == len(points) - 3


def test_rows_powers_table_and_pictures(tmp_path, monkeypatch):
    """Time that grows with the square, memory that does not grow."""

    def measured(point, platform):
        assert platform == "cpu"
        count = dict(point.job["more"]).popitem()[1]
        return {"ms": count**2 / 100, "program_mb": 7, "peak_mb": 200, "loss": 1.0}

    monkeypatch.setattr(growth, "measured", measured)
    values = ["64", "128", "512"]
    flags = ["--only", "proposals", "--proposals", *values, "--out", str(tmp_path / "a.json")]
    growth.main(flags)
    rows = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert [row["value"] for row in rows] == [64, 128, 512] * len(DETECTORS)
    powers = [row["power"] for row in rows[:3]]
    assert powers == [{}] + 2 * [{"ms": 2.0, "program_mb": 0.0, "peak_mb": 0.0}]
    text = (tmp_path / "a.md").read_text()
    assert "| mil | proposals | 128 | 164 | 2.0 | 7 | 0.0 | 200 | 0.0 |" in text
    assert (tmp_path / "a_proposals.png").read_bytes().startswith(b"\x89PNG")


def test_a_point_that_fails_is_a_row_and_ends_in_one_line(tmp_path, monkeypatch):
    """Rows are written one by one; powers pass over what failed."""
    out, lengths = tmp_path / "a.json", []

    def measured(point, platform):
        if out.exists():
            lengths.append(len(json.loads(out.read_text())["rows"]))
        if point.value == 80:
            return {"failed": "exit status 1: MemoryError | no"}
        return {"ms": float(point.value), "program_mb": 7, "peak_mb": 200, "loss": 1.0}

    monkeypatch.setattr(growth, "measured", measured)
    flags = ["--only", "classes", "--classes", "20", "80", "1000", "--detectors", "dino"]
    with pytest.raises(BadInput, match="1 points failed; see dino, classes 80: exit status 1"):
        growth.main([*flags, "--out", str(out)])
    assert lengths == [1, 2]
    rows = json.loads(out.read_text())["rows"]
    assert [row["power"].get("ms") for row in rows] == [None, None, 1.0]
    assert all(len(row["load"]) == 2 for row in rows)
    assert "| dino | classes | 80 | exit status 1: MemoryError   no |" in (
        (tmp_path / "a.md").read_text()
    )
    assert (tmp_path / "a_classes.png").exists()


def test_why_a_process_failed_and_the_platform_of_points(monkeypatch):
    asked = []
    real = growth.subprocess.run
    monkeypatch.setattr(
        growth.subprocess,
        "run",
        lambda *a, env, **more: asked.append(env["JAX_PLATFORMS"]) or real(["false"], **more),
    )
    points = [Point("pixels", 1, {}), Point("devices", 4, {}, devices=4)]
    found = [measured(point, "gpu") for point in points]
    assert asked == ["cuda", "cpu"] and found[0] == {"failed": "exit status 1: "}


def test_more_proposals_than_an_image_has_places_for_are_refused():
    """Cells of strides 8 to 64 at 128 x 192: 16 * 24 + 8 * 12 + 4 * 6 + 2 * 3 = 510."""
    options = BenchGrowth(sizes=((128, 192),), proposals=(510, 511), only=("proposals",))
    found = []
    with pytest.raises(BadInput, match="--proposals: 511 are more than the 510 places of dino"):
        found.extend(points_of(options, "dino"))
    assert len(list(points_of(options, "mil"))) == len(list(points_of(options, "faster_rcnn"))) == 2


def test_unknown_detectors_and_recipes_are_refused():
    with pytest.raises(BadInput, match="--detectors: yolo is none; choose from mil"):
        run(BenchGrowth(detectors=("yolo",)))
    with pytest.raises(BadInput, match="--recipe: voc07_mist is none of faster_rcnn"):
        run(BenchGrowth(recipe="voc07_mist"))


def test_a_point_is_measured_in_a_process_of_its_own(tmp_path):
    small = {"sizes": ((64, 64),), "proposals": (16,), "classes": (5,), "repeats": 1}
    small["out"] = tmp_path / "a.json"
    options = BenchGrowth(only=("devices",), devices=(2,), detectors=("mil",), **small)
    (row,) = run(options)
    assert row["value"] == 2 and row["ms"] > 0 and row["peak_mb"] > row["program_mb"] > 0
    assert (row["device"], row["platform"]) == ("cpu", "cpu") and (tmp_path / "a.md").exists()
    assert "| mil | devices | 2 |" in table([row])


def test_padding_is_what_an_image_leaves_of_its_padded_size():
    """By hand: 4:3 in its own size and in 3:2, and at half of the side."""
    counts = {(640, 480): 3, (480, 640): 1}
    scales = [padded_sizes(480, 960, aspects=(4 / 3,))]
    assert padding_of(counts, scales, (1, 1)) == {"sizes": 2, "padding": 0, "megapixels": 0.3072}
    scales = [padded_sizes(480, 960, aspects=(3 / 2,))]
    assert padding_of(counts, scales, (1, 1))["padding"] == pytest.approx(1 - 640 / 720, abs=1e-4)
    half = padding_of(counts, scales, (0.5, 0.5))["padding"]
    assert half == pytest.approx(1 - 640 / 720 / 4, abs=1e-4)
    assert sum(voc2007().values()) == 2000 and sum(coco_like().values()) == 100


def test_the_published_recipes_have_as_few_padded_sizes_as_the_table_says():
    found = {
        (name, work): padding_of(voc2007(), scales, jitter)
        for name, work, scales, jitter in recipes()
    }
    assert {name.split()[0] for name, _ in found} == set(DETECTORS)
    expected = {
        ("mil voc07_mist", "train"): (20, 0.05),
        ("mil voc07_mist", "predict"): (23, 0.05),
        ("faster_rcnn voc07", "train"): (16, 0.24),
        ("faster_rcnn voc07", "predict"): (12, 0.16),
        ("faster_rcnn coco14", "predict"): (50, 0.14),
    }
    for key, (sizes, share) in expected.items():
        assert found[key]["sizes"] == sizes
        assert found[key]["padding"] == pytest.approx(share, abs=0.015)


def test_places_of_proposals():
    assert places_of([100, 300, 260]) == {
        "mean": 220.0, "most": 300, "places": 384, "padding": 0.4271
    }  # fmt: skip
    bounds = {1: 256, 256: 256, 257: 384, 384: 384, 385: 512, 513: 768, 769: 1024, 1537: 2048}
    assert {most: places_of([most])["places"] for most in bounds} == bounds


def test_proposals_without_a_data_set_are_refused():
    with pytest.raises(BadInput, match="--proposals: belongs to a data set"):
        padding.main(["--proposals", "store"])
