"""What weights were trained on: said in the metadata of their files, and what a run may start from.

A weakly supervised run sees tags. Weights that saw boxes or masks would bring in what it must not
know, so a detector starts from them, or from weights that do not say what they saw, with permission
alone (`--allow-supervision`). SAM and CLIP are part of the method and need none. Imports neither
jax nor torch.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from weaksam_jax.errors import BadInput, did_you_mean
from weaksam_jax.files import read_metadata

Kind = Literal["none", "tags", "text", "boxes", "masks", "unknown"]
Permission = Literal["boxes", "masks", "unknown"]
KINDS: tuple[str, ...] = get_args(Kind)
GUARDED: tuple[str, ...] = get_args(Permission)
LONGEST = 300  # letters of a source, which may be a stranger's
FLAG = "--allow-supervision"


@dataclass(frozen=True)
class Supervision:
    """What weights have seen. kinds: of `KINDS`, in their order; source: whose weights they are and
    what they were trained on."""

    kinds: tuple[str, ...]
    source: str = ""

    @property
    def text(self) -> str:
        """ "tags, boxes"."""
        return ", ".join(self.kinds)

    def metadata(self) -> dict[str, str]:
        """What a weights file says of it."""
        return {"supervision": ",".join(self.kinds), "source": self.source}


def saw(kinds: Iterable[str], source: str = "") -> Supervision:
    """Those kinds, each once; "none" stands alone."""
    own = set(kinds)
    own -= {"none"} if len(own) > 1 else set()
    return Supervision(tuple(one for one in KINDS if one in own), source[:LONGEST])


def parse_kinds(text: str, where: str | Path) -> tuple[str, ...]:
    """The kinds in "tags,boxes"; `BadInput` with `where` for another word, or none."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    for word in words:
        if word not in KINDS:
            hint = did_you_mean(word[:60], KINDS, f"give some of {', '.join(KINDS)}")
            raise BadInput(where, f"{word[:60]} is no kind of supervision", hint)
    if not words:
        raise BadInput(where, "names no supervision", f"give some of {', '.join(KINDS)}")
    return saw(words).kinds


def stated(metadata: Mapping[str, str], path: str | Path) -> Supervision:
    """What the metadata of a weights file say; "unknown" where they do not."""
    text, source = metadata.get("supervision"), metadata.get("source", "")
    if text is None:
        return saw(["unknown"], source or "the file does not say")
    return saw(parse_kinds(text, f"{path} (metadata supervision)"), source)


def read_stated(path: str | Path) -> Supervision:
    """`stated` of a safetensors file, whose arrays are not read; `BadFile` when it is damaged."""
    return stated(read_metadata(path), path)


def trained(kinds: Iterable[str], source: str, start: Supervision | None) -> Supervision:
    """Of weights that were trained on those kinds, from `start` (None: from random numbers)."""
    if start is None:
        return saw(kinds, source)
    return saw((*kinds, *start.kinds), f"{source}, from: {start.source or start.text}")


def check_allowed(
    path: str | Path, seen: Supervision, allowed: Iterable[str], what: str
) -> tuple[str, ...]:
    """The kinds of `GUARDED` that weights have seen, all of which are allowed.

    what: whose start they would be, for the `BadInput` when one is not.
    """
    guarded = [one for one in GUARDED if one in seen.kinds]
    missing = [one for one in guarded if one not in set(allowed)]
    if missing == ["unknown"]:
        problem = f"does not say what supervision it has seen, and {what} would start from it"
        hint = "convert it again with python -m bridge.convert (stated: --supervision tags, say)"
        raise BadInput(path, problem, f"{hint}, or go on with {FLAG} unknown")
    if missing:
        problem = f"has seen {' and '.join(missing)}, and {what} would start from it"
        hint = "give weights that saw tags alone, or give up weak supervision with"
        raise BadInput(path, problem, f"{hint} {FLAG} {' '.join(missing)}")
    return tuple(guarded)


def ledger_row(file: str, seen: Supervision, allowed: Iterable[str] = ()) -> dict[str, str]:
    """A row of a run's ledger. allowed: kinds that needed permission, which the user gave."""
    permitted = ", ".join(allowed)
    row = {"file": file, "supervision": seen.text, "source": seen.source}
    return row | ({"allowed": permitted} if permitted else {})
