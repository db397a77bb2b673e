"""Which curves of a stage the report draws, read off the legends of its SVG."""

import re

from weaksam_jax.report import curves

TERMS = ("loss_cls", "loss_bbox", "loss_iou")
PARTS = ("things", "encoder_things", "denoising_things", "denoising_background")


def dino_lines(layers: int, steps=(10, 20)) -> list[dict]:
    """Log lines of a DINO, names in the order in which JAX returns a dictionary's."""
    before = [f"d{layer}." for layer in range(layers - 1)]
    terms = [
        f"{start}{noise}{term}"
        for start in ("", *before)
        for noise in ("", "dn_")
        for term in TERMS
    ]
    terms += [f"enc_{term}" for term in TERMS] + [f"dropped_{part}" for part in PARTS] + ["loss"]
    line = {name: 1.0 + index for index, name in enumerate(sorted(terms))}
    return [{"step": step, **line, "lr": 1.0, "images_per_s": 2.0} for step in steps]


def legends(lines) -> list[str]:
    """The texts of all legends, in order, without numbers of the axes."""
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", curves.loss_curve("retrain", lines))
    return [text for text in texts if re.fullmatch(r"(d\d+\.)?[a-z_]{4,}", text) and text != "step"]


def test_main_losses_and_shares_of_six_layers_are_drawn():
    drawn = legends(dino_lines(6))
    shares = [f"dropped_{part}" for part in sorted(PARTS)]
    assert set(shares) <= set(drawn)
    main = {f"{start}{term}" for start in ("", "enc_", "dn_") for term in TERMS}
    assert main | {"loss"} <= set(drawn)
    rest = [name for name in drawn if name not in main and name not in shares]
    assert rest[:1] == ["loss"] and rest[1:4] == [f"d0.{term}" for term in sorted(TERMS)]
    assert not {"lr", "images_per_s", "every_step"} & set(drawn)


def test_the_field_says_how_many_curves_it_leaves_out():
    svg = curves.loss_curve("retrain", dino_lines(6))
    assert "loss (15 of 40)" in svg and ">share<" in svg
    assert ">loss<" in curves.loss_curve("retrain", dino_lines(1)), "7 + 3 terms: all are drawn"


def test_layers_are_ordered_by_number():
    names = curves._names(dino_lines(12))[0]
    own = [name.split(".")[0] for name in names if name.endswith(".loss_cls")]
    assert own == [f"d{layer}" for layer in range(11)]
    assert names.index("d10.loss_iou") < names.index("d0.dn_loss_bbox")
