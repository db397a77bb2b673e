"""The metadata of converted files: what `weaksam_jax` must know to build the network.

- ImageNet weights: `backbone`, the network's name in the table of backbones; `pixels` where that
  network was trained on several kinds (vgg16: `rgb` or `bgr`).
- A detector: `detector`, its name in the table of detectors; `config`, JSON of the part of its
  config that the arrays or the published code determine (`model`, `test`; what is missing has the
  default); and `classes`, JSON of their names in the arrays' order, or `num_classes` where the
  published file names none.

Every file says what supervision it has seen, too (`weaksam_jax.supervision`); `convert` adds it.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from weaksam_jax.errors import BadInput
from weaksam_jax.text import parse_json


def detector_metadata(
    detector: str,
    config: Mapping[str, Mapping[str, Any]],
    num_classes: int,
    classes: Sequence[str] | None,
    source: str | Path,
) -> dict[str, str]:
    """Metadata of a detector's file.

    num_classes: without background, by the arrays. classes: their names, if they are known. Raises
    `BadInput` with `source` when their numbers differ.
    """
    if classes is not None and len(classes) != num_classes:
        problem = f"has {num_classes} classes without background, not the {len(classes)} that are"
        raise BadInput(source, f"{problem} named", "name every class, in the file's order")
    metadata = {"detector": detector, "config": json.dumps(config)}
    if classes is None:
        return metadata | {"num_classes": str(num_classes)}
    return metadata | {"classes": json.dumps(list(classes))}


def check_meaning(
    metadata: Mapping[str, str],
    means: Mapping[str, Any],
    source: str | Path,
    *,
    kind: str,
    detector: str,
) -> None:
    """Whether a published layout means what a detector's file states.

    means: fields of the model's config that every file of `kind` stands for and no array tells.
    Raises `BadInput` with `source` when its metadata state another detector or other values.
    """
    if metadata.get("detector") != detector:
        hint = f"give a file of training or bridge.convert that holds a {detector}"
        raise BadInput(source, f"does not say that it is a {detector}", hint)
    config = parse_json(metadata.get("config", "{}"), f"{source} (metadata config)")
    model = config.get("model") if isinstance(config, dict) else None
    stated = model if isinstance(model, dict) else {}
    for name, value in json.loads(json.dumps(means)).items():
        if stated.get(name) != value:
            found = ascii(stated.get(name))[:60]
            hint = "keep the safetensors file; the other layout has no place for this"
            raise BadInput(source, f"has model.{name} {found}, where {kind} means {value}", hint)
