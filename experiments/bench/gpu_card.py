"""The GPU card as JSON and as a table, with the figures that others have published."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.bench.written import beside
from weaksam_jax.files import write_json, write_text

# Dense TFLOP/s of a card by the data sheet, by a part of its name and by precision.
PEAKS = {
    "H100": {"bfloat16": 989.4, "tf32": 494.7, "float32": 66.9},
    "H200": {"bfloat16": 989.4, "tf32": 494.7, "float32": 66.9},
    "A100": {"bfloat16": 311.9, "tf32": 156.0, "float32": 19.5},
}
# (work, images per second, where)
PUBLISHED = (
    ("Mask R-CNN R50-FPN training", "143 per H100, 84 per A100, 42 per TPU v4 chip", "MLPerf"),
    ("Mask R-CNN R50-FPN training", "24 to 26 per A100", "ordinary mixed-precision recipe"),
    ("SAM ViT-H encoding", "22 to 25 per A100", "segment-anything-fast"),
    ("SAM 2.1-L, everything", "7.2 per H100", "its authors' compiled form"),
)


# Fields of a row that say in words what its figures do not, and what is said before them.
REMARKS = {
    "note": "",
    "lacks": "the work is not quite the same: ",
    "no_tflop": "flops unknown: ",
    "beside": "",
    "skipped": "not measured: ",
    "lost": "not measured either: ",
}


@dataclass(frozen=True)
class Card:
    """environment: card, driver, versions, date; rows: what was measured; dropped: names of the
    rows that there was no time for; seconds: of everything."""

    environment: dict[str, Any]
    rows: list[dict[str, Any]]
    dropped: list[str]
    seconds: float


def write_card(out: Path, card: Card) -> None:
    """As `out`, a JSON file, and as a table beside it."""
    rows = with_shares(card.rows)
    write_json(out, {**asdict(card), "rows": rows}, indent=1)
    write_text(beside(out, ".md"), markdown(card, rows))


def failed(row: dict) -> bool:
    """Whether a row is a check that found a difference, or did not end as it should."""
    return "failed" in row or not row.get("passed", True)


def with_shares(rows: Sequence[dict]) -> list[dict]:
    """Rows with `images_per_s` and, where device and flops are known, `share_of_peak`; an image is
    the same work for PyTorch as for ours of the same detector and precision."""
    known = [row for row in rows if row.get("tflop") and "images" in row]
    per_image = {_same_work(row): row["tflop"] / row["images"] for row in known}
    found = []
    for row in rows:
        more = {}
        if "ms" in row:
            speed = 1e3 * row["images"] / row["ms"]
            more["images_per_s"] = round(speed, 2)
            peak, tflop = _peak(row), per_image.get(_same_work(row))
            more |= {"share_of_peak": round(tflop * speed / peak, 4)} if peak and tflop else {}
        found.append(row | more)
    return found


def _peak(row: dict) -> float | None:
    """TFLOP/s of what the row was measured on, in its precision."""
    device = row.get("device", "")
    peaks = next((peaks for name, peaks in PEAKS.items() if name in device), {})
    return peaks.get(row["precision"])


def _same_work(row: dict) -> tuple:
    return tuple(row.get(name) for name in ("detector", "work", "precision"))


def markdown(card: Card, rows: Sequence[dict]) -> str:
    """The card in Markdown: where it was made, checks, speeds, remarks, what was dropped,
    others'."""
    said = card.environment
    versions = ", ".join(f"{name} {version}" for name, version in said["versions"].items())
    devices = ", ".join(dict.fromkeys(row["device"] for row in rows if "device" in row))
    head = f"{said['card']}; computed on {devices or 'nothing'}; Python {said['python']}, "
    head += f"{versions}; {said['date']}; {card.seconds:.0f} s\n"
    dropped = f"\nDropped for want of time: {', '.join(card.dropped) or 'nothing'}.\n"
    tables = [checks_table(rows), speed_table(rows), remarks(rows)]
    return "\n".join([head, *tables, dropped, published_table()])


def remarks(rows: Sequence[dict]) -> str:
    """What is to be said of single rows."""
    return "".join(
        f"- {row['name']}: {before}{row[field]}\n"
        for row in rows
        for field, before in REMARKS.items()
        if row.get(field)
    )


def checks_table(rows: Sequence[dict]) -> str:
    """What was compared with the CPU, or failed."""
    lines = [_line("check", "worst difference", "limit", "passed"), "|---|---|---|---|"]
    for row in rows:
        if "passed" in row:
            passed = "yes" if row["passed"] else "**no**"
            lines.append(_line(row["name"], row["worst"], row["limit"], passed))
        elif "failed" in row:
            lines.append(_line(row["name"], row["failed"].replace("|", " "), "", "**no**"))
    return "\n".join(lines) + "\n"


def speed_table(rows: Sequence[dict]) -> str:
    """What was timed."""
    names = ("work", "precision", "form", "images", "ms", "images/s", "share of peak", "GiB")
    lines = [_line(*names), "|---" * len(names) + "|"]
    for row in rows:
        if "ms" in row:
            size = "x".join(map(str, row.get("size", ())))
            work = " ".join(filter(None, (row["detector"], row["work"], size)))
            share = f"{100 * row['share_of_peak']:.1f} %" if "share_of_peak" in row else "-"
            memory = "-" if row.get("memory_gib") is None else row["memory_gib"]
            parts = (row["precision"], row["form"], row["images"], row["ms"], row["images_per_s"])
            lines.append(_line(work, *parts, share, memory))
    return "\n".join(lines) + "\n"


def published_table() -> str:
    """Figures of others."""
    lines = [_line("published: work", "images/s", "by"), "|---|---|---|"]
    return "\n".join([*lines, *(_line(*row) for row in PUBLISHED)]) + "\n"


def _line(*cells: Any) -> str:
    return f"| {' | '.join(map(str, cells))} |"
