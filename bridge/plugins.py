"""The frozen networks of a run, for `weaksam_jax.load`, which finds them as entry points."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bridge.clues.networks import ClueConfig, load_clues
from bridge.sam.networks import MINI, load_sam
from bridge.sam.pseudo_masks import MaskConfig, box_masks
from weaksam_jax.data.detections import category_ids
from weaksam_jax.errors import BadFile, BadSetting
from weaksam_jax.files import read_json
from weaksam_jax.ranges import Settings, shown
from weaksam_jax.run_folder import RunFolder
from weaksam_jax.settings import from_plain

_TRAINED = {"weaktr": "weaktr", "weaktr_paper": "weaktr", "lite_cam": "lite_cam"}


@dataclass(frozen=True)
class _Named(Settings):
    """What settings.json of a run says of its frozen networks."""

    sam: str
    clues: str
    clue_use: ClueConfig = field(default_factory=ClueConfig)


def masks(
    folder: RunFolder, given: str | Path | None = None
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """SAM, `given` or as settings.json of the run names it: (image uint8 `[H, W, 3]`, boxes float32
    `[n, 4]`) -> packed masks uint8 `[n, H, ceil(W / 8)]`; a box that SAM leaves empty is its own
    mask."""
    named = given or _named(folder).sam
    own = given is not None or named in MINI
    sam, how = load_sam(named if own else _inside(folder, "sam", named)), MaskConfig(empty="box")

    def prompt(image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        packed, _, _ = box_masks(sam, image, boxes, config=how)
        return packed

    return prompt


def tags(
    folder: RunFolder, classes: Sequence[str], given: str | Path | None = None
) -> Callable[[np.ndarray], np.ndarray]:
    """The clue network, `given` or the run's: image uint8 `[H, W, 3]` -> logits float32 `[C]`."""
    named = _named(folder)
    if given is not None:
        path = Path(given)
    elif named.clues in _TRAINED:
        path = folder.clue_network(_TRAINED[named.clues])
    else:
        path = _inside(folder, "clues", named.clues)
    if not path.exists():
        raise BadFile(path, "does not exist", "finish the run's stage clues")
    ids = category_ids(folder.pseudo_boxes(), classes)
    network = load_clues(path, tuple(classes), ids, config=named.clue_use)
    return lambda image: network(image, None).class_logits


def _named(folder: RunFolder) -> _Named:
    values = read_json(folder.settings)
    inner = values.get("settings") if isinstance(values, dict) else None
    if not isinstance(inner, dict):
        place, hint = (folder.settings, "settings"), "give a run folder of this version"
        raise BadSetting(*place, "is no object of settings", hint=hint)
    known = {name: inner[name] for name in _Named.__dataclass_fields__ if name in inner}
    return from_plain(_Named, known, folder.settings, field="settings")


def _inside(folder: RunFolder, field: str, name: str) -> Path:
    """A file of weights that a run names, which must lie in its folder: a run may be a stranger's,
    and nobody asked for what it points at elsewhere."""
    path = Path(name)
    if not path.resolve().is_relative_to(folder.root.resolve()):
        problem = f"names {shown(name)}, which is not in the run folder"
        hint = f"if that is meant, give the file yourself: --{field} FILE (Python: {field}=)"
        raise BadSetting(folder.settings, f"settings.{field}", problem, hint=hint)
    return path
