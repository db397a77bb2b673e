"""The table of MIL methods: a training for each cell, again when its proposals have changed."""

import json

import pytest
from tiny_mil import TINY
from tiny_pipeline import write_run

from experiments.paper.mil_methods import MilMethods, compare
from weaksam_jax.errors import BadInput


def test_a_cell_is_trained_once_and_again_on_other_proposals(drawn, tmp_path, capsys):
    run = write_run(drawn[2].parent, "mini")
    options = MilMethods((run,), tmp_path, methods=("wsddn", "oicr"), config=TINY)
    manifests = [run / "proposals" / name / "manifest.json" for name in ("trainval", "test")]
    with pytest.raises(BadInput, match=r"manifest\.json: does not exist"):
        compare(options)
    try:
        for path in manifests:
            path.write_text('{"fingerprint": "one"}')
        rows = compare(options)
        assert [(row["method"], row["seed"]) for row in rows] == [("wsddn", 0), ("oicr", 0)]
        assert all(0 <= row[figure] <= 100 for row in rows for figure in ("corloc", "ap50"))
        assert [row["settings"]["model"]["method"] for row in rows] == ["wsddn", "oicr"]
        capsys.readouterr()
        assert compare(options) == rows and "training" not in capsys.readouterr().err
        manifests[0].write_text('{"fingerprint": "two"}')
        assert [row["ap50"] for row in compare(options)] == [row["ap50"] for row in rows]
        assert capsys.readouterr().err.count("training in") == 2
        assert json.loads((tmp_path / "table.json").read_text())["rows"][1]["method"] == "oicr"
    finally:
        for path in manifests:
            path.unlink(missing_ok=True)
