"""Curves as inline SVG: the same bytes every time, no address in them, readable on dark and light.

Letters and axes are drawn in `currentColor`, so they take the page's own colour.
"""

import io
import re
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from weaksam_jax.report.artefacts import numbers, part
from weaksam_jax.report.draw import PALETTE

_INK = "#123456"  # stands for the page's colour until the SVG is written
_POINTS = 160  # of a curve; longer ones are averaged in bins
_MOST_CURVES = 15  # of a field
_COUNTS = {"objects", "found", "part_only", "missed"}
_NOT_DRAWN = {"stage", "step", "epoch", "lr", "images_per_s", "every_step"}
_OF_LAYER = re.compile(r"d\d+\.")  # of a decoder layer before the last
_DASHES = ("-", "--", ":")
_STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.parse_math": False,
    **{name: _INK for name in ("text.color", "axes.edgecolor", "axes.labelcolor")},
    **{name: _INK for name in ("xtick.color", "ytick.color")},
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
_COLORS = [tuple(channel / 255 for channel in color) for color in (PALETTE[6], *PALETTE[:6])]


def loss_curve(stage: str, lines: Sequence[Mapping]) -> str:
    """The losses of one stage over its steps; shares (of RoIs, say) in a field of their own."""
    losses, shares = _names(lines)
    fields = {"loss": losses, "share": shares} if shares else {"loss": losses}
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": f"loss {stage}"}):
        figure = Figure(figsize=(5.6, 2.7 if len(fields) == 1 else 4.0), layout="constrained")
        ratio = [2, 1][: len(fields)]
        axes = figure.subplots(len(fields), sharex=True, squeeze=False, height_ratios=ratio)[:, 0]
        for ax, (label, names) in zip(axes, fields.items(), strict=True):
            for index, name in enumerate(names[:_MOST_CURVES]):
                _curve(ax, lines, name, index=index)
            left = len(names) > _MOST_CURVES
            _finish(ax, f"{label} ({_MOST_CURVES} of {len(names)})" if left else label)
        axes[-1].set_xlabel("step")
        return _svg(figure)


def recall_curve(metrics: Mapping) -> str | None:
    """Recall against the number of proposals kept, at IoU 0.5, 0.75 and 0.9."""
    end = numbers(part(metrics, "proposals", "recall"))
    if not end:
        return None
    limits = part(metrics, "proposals", "recall_at")
    at = {int(limit): numbers(part(limits, limit)) for limit in limits if _is_count(limit)}
    at = {limit: shares for limit, shares in at.items() if end.keys() <= shares.keys()}
    counts = sorted(at)
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": "recall"}):
        figure = Figure(figsize=(5.6, 2.7), layout="constrained")
        ax = figure.subplots()
        for color, iou in zip(_COLORS, end, strict=False):
            label = f"IoU {iou}"
            ax.plot(counts, [at[c][iou] for c in counts], "o-", ms=3, color=color, label=label)
            ax.axhline(end[iou], ls=":", lw=1, color=color)
        ax.set_ylim(0, 1.02)
        ax.set_xlabel("proposals kept of each image (dotted: all)")
        _finish(ax, "share of objects found")
        return _svg(figure)


def pgt_bars(metrics: Mapping) -> str | None:
    """Objects found, held only in part, and missed, by top-1 and adaptive pseudo boxes."""
    rules = {"adaptive": part(metrics, "pgt"), "top-1": part(metrics, "pgt_top1")}
    rules = {name: numbers(one) for name, one in rules.items()}
    rules = {name: one for name, one in rules.items() if one.keys() >= _COUNTS and one["objects"]}
    if not rules:
        return None
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": "pgt"}):
        figure = Figure(figsize=(5.6, 2.0), layout="constrained")
        ax = figure.subplots()
        start = np.zeros(len(rules))
        parts = {"found": _COLORS[3], "part_only": _COLORS[1], "missed": _COLORS[5]}
        for name, color in parts.items():
            share = np.array([100 * one[name] / one["objects"] for one in rules.values()])
            ax.barh(list(rules), share, left=start, color=color, label=name.replace("_", " "))
            start += share
        ax.set_xlim(0, 100)
        ax.set_xlabel("percent of the training objects")
        figure.legend(loc="outside upper center", ncols=3)
        return _svg(figure)


def _names(lines: Sequence[Mapping]) -> tuple[list[str], list[str]]:
    """Names of the losses and of the shares in a log, those that say most first."""
    names = dict.fromkeys(name for line in lines for name in line if name not in _NOT_DRAWN)
    ordered = sorted(names, key=_place)
    shares = {name for name in names if name.startswith("dropped") or name.endswith("_rois")}
    return [name for name in ordered if name not in shares], sorted(shares)


def _place(name: str) -> tuple:
    """Orders losses: their sum; terms of the last layer (of a detector without layers: all), of the
    encoder and of denoising; those of layers before, and of their denoising, by layer."""
    layer = _OF_LAYER.match(name)
    if layer:
        return 4, "dn_" in name, layer.end(), name  # d9 before d10
    starts = ("enc_", "dn_")
    rank = next((2 + i for i, start in enumerate(starts) if name.startswith(start)), name != "loss")
    return int(rank), False, 0, name


def _curve(ax, lines: Sequence[Mapping], name: str, *, index: int) -> None:
    steps, values = _thin(lines, name)
    again, color = divmod(index, len(_COLORS))
    style = {"color": _COLORS[color], "ls": _DASHES[again], "lw": 2.2 if name == "loss" else 1.2}
    ax.plot(steps, values, label=name, marker="." if len(steps) < 2 else None, **style)


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10


def _thin(lines: Sequence[Mapping], name: str) -> tuple[list[float], list[float]]:
    """Steps and values of a curve, as means of at most `_POINTS` bins."""
    pairs = np.array([(line["step"], line[name]) for line in lines if name in line], float)
    bins = np.array_split(pairs, min(len(pairs), _POINTS))
    means = np.array([part.mean(0) for part in bins])
    return means[:, 0].tolist(), means[:, 1].tolist()


def _finish(ax, label: str) -> None:
    ax.set_ylabel(label)
    ax.grid(alpha=0.25, color=_INK, lw=0.6)
    if ax.lines:
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)


def _svg(figure: Figure) -> str:
    """The figure's SVG element, for use inside HTML (which needs no XML names)."""
    file = io.StringIO()
    metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(file, format="svg", transparent=True, metadata=metadata)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", text)
    text = text.replace("xlink:href", "href").replace(_INK, "currentColor")
    return re.sub(r'<svg width="[^"]*" height="[^"]*"', '<svg role="img"', text, count=1)
