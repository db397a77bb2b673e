"""Every number of every config is checked at once: what is refused is named, what is not is listed
here."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tiny_pipeline
from config_places import PLACES, STAGES, nested, planted, value_at

from bridge.runtime.command import run_command
from weaksam_jax.cli import entry_point
from weaksam_jax.errors import BadInput, BadSetting
from weaksam_jax.flags import FLAT, parse
from weaksam_jax.ranges import (
    FILLED,
    RISING,
    Count,
    Fault,
    Positive,
    Seed,
    Settings,
    Share,
    first_fault,
    integers,
)
from weaksam_jax.settings import from_plain

# What may be 0: switched off, none of them, or the lowest end of a range.
ZERO = """
clue_use.clip.box_threshold clue_use.cross_layers weaktr.drop_path weaktr.jitter weaktr.min_lr
weaktr.reach weaktr.warmup_epochs weaktr.warmup_lr weaktr.weight_decay weaktr.workers lite.steps
export.prompts.grid_side export.prompts.threshold export.proposals.clue_share
export.proposals.cross_nms export.proposals.dedupe_nms export.proposals.grid_nms
export.proposals.min_side export.proposals.peak_tokens export.proposals.stability_offset
export.proposals.t_iou export.proposals.t_stab export.search.min_side export.search.nms
export.search.seed wsod.data.augment.channel_gain wsod.data.augment.colour wsod.data.augment.flip
wsod.data.augment.hide wsod.data.augment.lighting wsod.data.clue_evidence wsod.data.min_side
wsod.loss.ignore_below wsod.loss.tag_weight wsod.model.dropout wsod.model.evidence
wsod.model.score_std wsod.optim.final_lr wsod.optim.pretrain_steps wsod.optim.refine_lr
wsod.optim.steps wsod.optim.warmup wsod.optim.warmup_from wsod.optim.weight_decay
wsod.test.clue_power wsod.test.nms pgt.overlap_threshold pgt.score_threshold
retrain.data.augment.channel_gain retrain.data.augment.colour retrain.data.augment.flip
retrain.data.augment.hide retrain.data.augment.lighting retrain.loss.drop.start
retrain.loss.drop.tau_cls retrain.loss.drop.tau_reg retrain.loss.roi_foreground
retrain.loss.roi_iou retrain.loss.rpn_foreground retrain.loss.rpn_iou retrain.loss.smooth_l1_beta
retrain.model.canonical_level retrain.model.extra_levels retrain.optim.final_lr
retrain.optim.warmup retrain.optim.warmup_from retrain.optim.weight_decay retrain.test.nms
retrain.test.score_threshold retrain.test.tag_power
"""


@pytest.mark.parametrize("value", [math.nan, math.inf, -1, 0, 10**12])
def test_every_number_of_every_config(value):
    assert len(PLACES) > 100
    accepted = []
    for stage, place, hint in PLACES:
        config, name = STAGES[stage], ".".join((stage, *place))
        content = nested(place, planted(hint, value_at(config, place), value))
        try:
            from_plain(type(config), content, "a/settings.json", base=config, field=stage)
            accepted.append(name)
        except BadSetting as error:
            assert str(error).startswith(f"a/settings.json: {name}"), (name, str(error))
            assert error.hint and len(str(error).splitlines()) == 1
    fine = {0: ZERO.split(), -1: ["export.proposals.t_iou"]}  # what SAM estimates may be below 0
    assert sorted(accepted) == sorted(fine.get(value, []))


WRONG = {
    "wsod.optim.lr": [True, "1e-3", None, [1], {}, 10**400],
    "wsod.optim.steps": [True, 1.5, "3", None, [3], 10**400, -(10**400)],
    "wsod.optim.clip": [True, "x", [1.0]],
    "wsod.optim.optimizer": ["adam", 1, None, ["sgd"]],
    "wsod.optim.milestones": [[3, 2], [2, 2], [1.5], 3, "12", None, [[1]], [True]],
    "wsod.optim.micro_batches": [3],
    "wsod.optim.init": ["a\0b", 3, ["x"], "\ud800"],
    "wsod.model.backbone": ["nope", "", 3, "resnet", "x" * 10_000],
    "wsod.model.pool_size": [2],  # too few cells for `evidence`
    "wsod.data.scales": [[], [[]], [[[0, 8]]], [[[8, 8]], []], [[[8, 8, 8]]], [[[8, 12]]], 8],
    "wsod.data.augment.scale": [[1.0], [1.0, 0.5], [0.5, 1.0, 2.0], 1.0],
    "wsod.data.cache_maps": [True, 1, "yes"],
    "wsod.test.batch_size": [4097],
    "retrain.model.strides": [[8, 16], [8, 8, 16], [], [8, 16, 64]],
    "retrain.model.anchor_sizes": [[[32]], [[32], [56], []], [[32], [56], [96, 128]]],
    "retrain.loss.rpn_iou": [[0.7, 0.3]],
    "retrain.loss.drop": [3, "none", [], {"start": -1}],
    "retrain.test.tta_scales": [[[[8, 8]], [[8, 8], [8, 16]]]],
    "weaktr.heads": [3],
    "weaktr.crop": [113],
    "weaktr.fusion": ["v2", None],
    "weaktr.drop_path": [1, 1.0],
    "export.prompts.kernel_fine": [4],
    "export.prompts.sources": [[], ["peaks"], "grid"],
    "export.proposals.peak_tokens": [[], [3], [-1]],
    "clue_use.clip.prompt": ["a photo", "{} {}", "{0}", "{x}{}"],
    "lite.temperature": [0],
    "lite.tta_scales": [[], [0.0], 1.0],
    "pgt.rule": ["papr", 3],
    "pgt.nested": ["dog", [3]],
}


@pytest.mark.parametrize("name", WRONG)
def test_values_of_other_types_and_that_do_not_fit_together(name):
    stage, *place = name.split(".")
    for value in WRONG[name]:
        with pytest.raises(BadSetting) as caught:
            content = nested(place, value)
            from_plain(type(STAGES[stage]), content, "a.json", base=STAGES[stage], field=stage)
        said = str(caught.value)
        start = name if name != "wsod.model.pool_size" else "wsod.model.evidence"
        assert said.startswith(f"a.json: {start}") and len(said) < 400, said


def test_a_batch_of_images_has_a_bound():
    content = {"data": {"scales": [[[8192, 8192]]]}, "optim": {"batch_size": 4096}}
    with pytest.raises(BadSetting, match=r"wsod\.optim\.batch_size is 4096: 768 GB of images"):
        from_plain(type(STAGES["wsod"]), content, "a.json", base=STAGES["wsod"], field="wsod")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--wsod.optim.lr nan", "--wsod.optim.lr: is nan; give a number above 0"),
        ("--retrain.optim.lr 0", "--retrain.optim.lr: is 0.0; give a number above 0"),
        (
            "--retrain.data.augment.flip 2",
            "--retrain.data.augment.flip: is 2.0; give a number from",
        ),
        ("--wsod.data.scales.0 100 100", "--wsod.data.scales: have the side 100; give multiples"),
        ("--retrain.data.scales.0 96 0", "--retrain.data.scales.0.0.1: is 0; give an integer"),
        ("--pgt.k 0", "--pgt.k: is 0; give an integer from 1"),
        ("--seed -1", "--seed: is -1; give an integer from 0 to 4,294,967,295"),
        ("--seed 4294967296", "--seed: is 4294967296; give"),
        ("--weaktr.drop-path 1", "--weaktr.drop-path: is 1.0; give a number from 0 on, below 1"),
        ("--weaktr.workers 100000", "--weaktr.workers: is 100000; give an integer from 0 to 256"),
        ("--wsod.optim.batch-size 1000000000", "--wsod.optim.batch-size: is 1000000000; give"),
    ],
)
def test_flags_are_named_in_full(flags, said):
    given = tiny_pipeline.flags(Path("data"), Path("out"), *flags.split())
    with pytest.raises(BadInput) as caught:
        tiny_pipeline.options(*given)
    assert str(caught.value).startswith(said)


@dataclass(frozen=True)
class Inner(Settings):
    rate: Positive = 1.0
    steps: Annotated[tuple[Count, ...], FILLED, RISING] = (1, 2)
    side: Annotated[int, integers(1, 9)] | None = None
    kind: Literal["a", "b"] = "a"

    def misfits(self):
        if self.side == 5 and self.kind == "b":
            yield Fault("kind", "does not go with 5", "choose a")


@dataclass(frozen=True)
class Outer:
    inner: Annotated[Inner, FLAT] = field(default_factory=Inner)
    big_part: Inner = field(default_factory=Inner)
    share: Share = 0.5


def test_python_is_told_the_class_and_the_field():
    for wrong in ({"rate": math.nan}, {"steps": (2, 1)}, {"steps": ()}, {"side": 0}, {"kind": "c"}):
        (name,) = wrong
        with pytest.raises(BadSetting, match=rf"^Inner: {name} "):
            Inner(**wrong)
    with pytest.raises(BadSetting, match=r"^Inner: steps\.1 is True; give an integer from 1"):
        Inner(steps=(1, True))
    with pytest.raises(BadSetting, match=r"^Inner: kind does not go with 5; choose a"):
        dataclasses.replace(Inner(side=5), kind="b")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--rate", "inf"], "--rate: is inf; "),
        (["--big-part.rate", "0"], "--big-part.rate: is 0.0; "),
        (["--big-part.side", "5", "--big-part.kind", "b"], "--big-part.kind: does not go with 5; "),
        (["--share", "nan"], "--share: is nan; give a number from 0 to 1"),
    ],
)
def test_any_command_checks_its_flags(argv, said):
    with pytest.raises(BadInput) as caught:
        parse(Outer, argv, "Doc.", name="outer")
    assert str(caught.value).startswith(said)
    assert parse(Outer, ["--share", "1"], "Doc.", name="outer") == Outer(share=1.0)


def test_commands_of_functions_check_theirs(capsys):
    ran = []

    def command(lr: Positive, seed: Seed = 0) -> None:
        """Runs.

        Args:
            lr: rate.
            seed: of it.
        """
        ran.append((lr, seed))

    def main(argv):
        run_command(command, argv, "prog", "About.")

    for argv in (["--lr", "nan"], ["--lr", "1", "--seed", "-1"]):
        assert entry_point(main, argv) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {argv[-2]}: is ")
    assert entry_point(main, ["--lr", "1"]) == 0 and ran == [(1.0, 0)]


def test_a_value_in_an_error_is_short():
    deep = json.loads(300 * "[" + 300 * "]")
    for value in (deep, "x" * 10**6, list(range(10**5)), {"a": deep}, 10**5000):
        fault = first_fault(Share, value)
        assert len(fault.problem) < 300 and "\n" not in fault.problem
