"""The page: complete, incomplete, without truth; its bytes; what it must never contain."""

import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import run_folder
from PIL import Image

from weaksam_jax.errors import BadInput
from weaksam_jax.files import write_json
from weaksam_jax.report import page
from weaksam_jax.report.gallery import save_gallery


def write_report(run, train, test, train_truth, test_truth, proposals=None):
    splits = {"train": train, "test": test}
    truths = {"train": train_truth, "test": test_truth}
    return page.write_report(run_folder.files(run, proposals), splits, truths)


VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Counts elements, checks that every one is closed in order, gathers the text."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.counts, self.words, self.images = [], {}, [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.counts[tag] = self.counts.get(tag, 0) + 1
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.counts[tag] = self.counts.get(tag, 0) + 1

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with everything: (run folder, the four splits, the page's text)."""
    folder = tmp_path_factory.mktemp("whole")
    splits = run_folder.splits(folder)
    run = run_folder.fill(folder / "run", *splits[:2])
    path = write_report(run, *splits)
    assert path == run / "report" / "index.html"
    return run, splits, path.read_text(encoding="utf-8")


def test_the_whole_page_shows_every_stage_of_every_image(whole):
    page = Page(whole[2])
    names = ["photo", "points over class maps", "proposals", "top-1 pseudo boxes"]
    names += ["adaptive pseudo boxes", "truth", "pseudo masks"]
    shown = [image["alt"] for image in page.images]
    for image_id in range(1, 5):
        assert [f"{image_id} <i>.png: {name}" for name in names] == [
            alt for alt in shown if alt.startswith(f"{image_id} <i>")
        ]
    for image_id in range(101, 104):
        found = [alt.split(": ")[1] for alt in shown if alt.startswith(f"{image_id} <i>")]
        assert found == ["truth", "MIL detector", "retrained detector"]
    assert "Not in this run" not in page.text
    assert page.counts["svg"] == 4  # two losses, recall, pseudo boxes


def test_figures_are_the_ones_of_metrics_json(whole):
    text = Page(whole[2]).text
    assert re.search(r"AP50 of the MIL detector 37\.5 %", text)
    assert re.search(r"AP50 of the retrained detector 44\.2 %", text)
    assert re.search(r"Proposal recall, IoU 0\.5 91\.0 %", text)
    assert "strange.deep.figure 0.125" in text  # a key that the report does not know
    assert "strange.deep.word <u>" in text
    assert "1 min 15 s" in text and "1 h 02 min" in text
    assert re.search(r"owl 4 4 4 62\.5 62\.5", text)
    assert "top-1 1 of 2 objects" in text and "The adaptive rule finds 2 of 2 objects" in text
    assert "MIL detector: 1 of 2 objects, 0 wrong" in text


def test_pictures_are_jpegs_inside_the_page(whole):
    import base64
    import io

    for image in Page(whole[2]).images:
        head, data = image["src"].split(",")
        assert head == "data:image/jpeg;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            assert picture.size == (int(image["width"]), int(image["height"]))


def test_the_page_loads_nothing_and_escapes_names(whole):
    text = re.sub(r'src="data:[^"]*"', "", whole[2])  # base64 is no address
    assert "http:" not in text and "https:" not in text and "//" not in text
    assert not re.search(r"<script|<link|@import|url\((?!#)", text)
    assert "cat &amp; &lt;b&gt;dog&lt;/b&gt;" in text and "<b>dog</b>" not in text
    assert "tiny &lt;set&gt;" in text and "<i>.png" not in text


def test_the_same_run_gives_the_same_bytes(whole, tmp_path):
    run, splits, text = whole
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "report" / "index.html").unlink()
    assert write_report(copy, *splits).read_text(encoding="utf-8") == text


def test_an_empty_run_folder_without_truth_is_a_page_that_says_so(tmp_path):
    train, test, _, _ = run_folder.splits(tmp_path)
    page = Page(write_report(tmp_path / "run", train, test, None, None).read_text())
    for words in ("class maps", "proposals", "MIL detector", "top-1", "retrained", "pseudo masks"):
        assert words in page.text.split("Not in this run")[1].split(". ")[0]
    assert "has no boxes" in page.text and "svg" not in page.counts
    assert [image["alt"].split(": ")[1] for image in page.images] == ["photo"] * 4
    assert "no settings.json" in page.text


def test_without_truth_boxes_are_shown_but_not_judged(whole, tmp_path):
    run, (train, test, _, _), _ = whole
    copy = shutil.copytree(run, tmp_path / "copy")
    page = Page(write_report(copy, train, test, None, None).read_text())
    assert "adaptive pseudo boxes 2 boxes" in page.text
    assert not re.search(r"\d (wrong|missed)|of \d objects", page.text)
    assert not any(image["alt"].endswith(": truth") for image in page.images)
    assert "Which images are worst cannot be said" in page.text


@pytest.mark.parametrize(
    ("part", "column"),
    [
        ("clues", "points over class maps"),
        ("proposals", "proposals"),
        ("pgt/top1.json", "top-1 pseudo boxes"),
        ("pgt/pgt.json", "adaptive pseudo boxes"),
        ("masks", "pseudo masks"),
        ("wsod/detections_test.json", "MIL detector"),
        ("retrain", "retrained detector"),
    ],
)
def test_one_missing_part_takes_only_its_column(whole, tmp_path, part, column):
    run, splits, text = whole
    copy = shutil.copytree(run, tmp_path / "copy")
    path = copy / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    page = Page(write_report(copy, *splits).read_text())
    names = {image["alt"].split(": ")[1] for image in page.images}
    assert {image["alt"].split(": ")[1] for image in Page(text).images} - names == {column}
    assert "Not in this run" in page.text


def test_one_missing_file_of_an_image_leaves_a_gap_in_its_row(whole, tmp_path):
    run, splits, _ = whole
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "clues" / "trainval" / "02" / "2.safetensors").unlink()
    page = Page(write_report(copy, *splits).read_text())
    assert page.text.count("no file for this image") == 1


def test_worst_images_are_those_with_most_faults(whole, tmp_path):
    run, splits, _ = whole
    copy = shutil.copytree(run, tmp_path / "copy")
    train, test = splits[:2]
    pgt = run_folder.annotations(train)
    rows = pgt["annotations"]  # image 3 loses both boxes, image 1 one of them
    pgt["annotations"] = [r for r in rows if r["image_id"] != 3][1:]
    write_json(copy / "pgt/pgt.json", pgt)
    found = run_folder.results(test)
    low = [{**r, "score": 0.4} for r in found if r["image_id"] == 102]
    write_json(copy / "retrain/detections_test.json", found[:2] + low + found[4:])
    text = Page(write_report(copy, *splits).read_text()).text.split("The worst images")[1]
    heads = re.findall(r"(\d+) <i>\.png 48 × 36", text)
    assert heads == ["3", "1", "102"]


def test_a_foreign_or_broken_file_is_named(whole, tmp_path):
    run, splits, _ = whole
    copy = shutil.copytree(run, tmp_path / "copy")
    write_json(copy / "pgt/top1.json", {"annotations": [{"image_id": 99, "category_id": 11}]})
    with pytest.raises(BadInput, match=r"top1\.json: annotations\[0\]: image_id 99,"):
        write_report(copy, *splits)
    (copy / "pgt/top1.json").write_text('{"annot')
    with pytest.raises(BadInput, match=r"top1\.json"):
        write_report(copy, *splits)


def test_a_log_line_cut_short_by_a_kill_is_passed_over(whole, tmp_path):
    run, splits, text = whole
    copy = shutil.copytree(run, tmp_path / "copy")
    with open(copy / "log.jsonl", "a") as log:
        log.write('{"stage": "retr')
    assert write_report(copy, *splits).read_text() == text
    lines = (copy / "log.jsonl").read_text().splitlines()
    (copy / "log.jsonl").write_text("\n".join([lines[-1], *lines[:-1]]))
    with pytest.raises(BadInput, match="line 1 is no log line"):
        write_report(copy, *splits)


def test_proposals_may_be_in_another_store(whole, tmp_path):
    run, splits, _ = whole
    copy = shutil.copytree(run, tmp_path / "copy")
    elsewhere = shutil.move(copy / "proposals", tmp_path / "elsewhere")
    page = Page(write_report(copy, *splits, proposals=elsewhere).read_text())
    assert sum(image["alt"].endswith(": proposals") for image in page.images) == 4
    page = Page(write_report(copy, *splits, proposals=tmp_path / "none").read_text())
    assert f"proposals ({tmp_path / 'none' / 'trainval'}, stage proposals)" in page.text


def test_the_gallery_has_a_cell_for_each_stage(whole, tmp_path):
    run, (train, _, truth, _), _ = whole
    files, out = run_folder.files(run), tmp_path / "out" / "gallery.png"
    path = save_gallery(files, train, truth, out, images=2)
    picture = np.asarray(Image.open(path))
    cell = (3 * run_folder.WIDTH + 8, 3 * run_folder.HEIGHT + 8)
    assert picture.shape == (2 * cell[1] + 8 + 34, 7 * cell[0] + 8, 3)
    again = save_gallery(files, train, truth, tmp_path / "again.png", images=2)
    assert again.read_bytes() == path.read_bytes()
