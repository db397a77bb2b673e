"""What `drop_figures` counted, as text and as a picture: of RoIs, or of DINO's queries."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from weaksam_jax.files import atomic_path

# Losses of a row -> their titles.
_OF_ROIS = {"cls": "classification loss", "reg": "box loss (L1)"}
_OF_QUERIES = {
    "cls": "unweighted classification loss",
    "l1": "L1 loss of the box",
    "rank": "rank in the batch",
}


def table(row: Mapping) -> str:
    """The summary as text."""
    where = "the run's detector" if row["step"] is None else f"after {row['step']} steps"
    count, what = _counted(row)
    errors = percent(row["errors"])
    lines = [f"{where}: {row[count]} {what}, {errors} % errors"]
    lines += _of_queries(row) if count == "queries" else _of_rois(row)
    gone, kept = percent(row["errors_of_dropped"]), percent(row["errors_of_kept"])
    lines.append(
        f"{_rule(row)}: {percent(row['dropped'])} % dropped, of which {gone} % are errors, of "
        f"those kept {kept} %"
    )
    background = "background queries" if count == "queries" else "background RoIs"
    number = row[background.replace(" ", "_").lower()]
    lines.append(f"of {number} {background} {percent(row['dropped_background'])} % dropped")
    return "\n".join(lines)


def _counted(row: Mapping) -> tuple[str, str]:
    """(the key of counts, what is counted)."""
    return ("queries", "matched queries") if "queries" in row else ("rois", "foreground RoIs")


def _rule(row: Mapping) -> str:
    if "queries" in row:
        ranked = "things and background" if row["background"] else "things"
        return f"percentile {row['percentile']:g} of {ranked}"
    return f"tau_cls {row['tau_cls']:g}, tau_reg {row['tau_reg']:g}, {row['rule']}"


def _of_rois(row: Mapping) -> list[str]:
    """Both losses side by side: they have the same intervals."""
    lines = [f"{'loss from':>10} {'cls RoIs':>9} {'errors %':>9} {'reg RoIs':>9} {'errors %':>9}"]
    for cls, reg in zip(row["cls"], row["reg"], strict=True):
        cells = [f"{one['rois']:9} {percent(one['errors']):>9}" for one in (cls, reg)]
        lines.append(f"{cls['from']:10.2f} {cells[0]} {cells[1]}")
    return lines


def _of_queries(row: Mapping) -> list[str]:
    lines = []
    for name, title in _OF_QUERIES.items():
        lines.append(f"{'from':>10} {'queries':>9} {'errors %':>9}  ({title})")
        for one in row[name]:
            lines.append(f"{one['from']:10.2f} {one['queries']:9} {percent(one['errors']):>9}")
    return lines


def percent(value: float | None) -> str:
    """A share, or a dash for None."""
    return "    -" if value is None else f"{100 * value:5.1f}"


def draw(row: Mapping, path: Path) -> None:
    """Bars: number of each interval; line: share of errors."""
    from matplotlib.figure import Figure

    count, what = _counted(row)
    titles = _OF_QUERIES if count == "queries" else _OF_ROIS
    figure = Figure(figsize=(4.5 * len(titles), 3.4), layout="constrained")
    for axis, (name, title) in zip(figure.subplots(1, len(titles)), titles.items(), strict=True):
        axis.set_title(title)
        _draw_loss(axis, row[name], count=count, what=what)
    step = row["step"]
    figure.suptitle("the run's detector" if step is None else f"after {step} steps without drop")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _draw_loss(axis, rows: Sequence[Mapping], *, count: str, what: str) -> None:
    x = range(len(rows))
    axis.bar(x, [row[count] for row in rows], color="tab:blue", alpha=0.6)
    axis.set_xticks(x, [f"{row['from']:g}" for row in rows])
    axis.set(xlabel="from", ylabel=what)
    right = axis.twinx()
    share = [np.nan if row["errors"] is None else 100 * row["errors"] for row in rows]
    right.plot(x, share, "o-", color="tab:red")
    right.set(ylim=(0, 100), ylabel="of them with a wrong pseudo box, %")
