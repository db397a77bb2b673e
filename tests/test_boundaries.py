"""The import boundaries hold, and their checker sees what it must."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def _load_checker():
    spec = importlib.util.spec_from_file_location("boundaries", ROOT / ".ci" / "boundaries.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["boundaries"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


boundaries = _load_checker()


def plant(root: Path, name: str, source: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)


def test_every_import_statement_keeps_the_boundaries():
    assert boundaries.violations(ROOT) == []


@pytest.mark.parametrize(("package", "forbidden"), [("weaksam_jax", "TORCH"), ("bridge", "JAX")])
def test_importing_every_module_leaves_the_other_framework_out(package, forbidden):
    loaded = boundaries.loaded_after_import(ROOT, package)
    assert package in loaded
    assert loaded & set(getattr(boundaries, forbidden)) == set()


@pytest.mark.parametrize(
    ("name", "source", "module"),
    [
        ("weaksam_jax/ops/roi.py", "import torch\n", "torch"),
        ("weaksam_jax/ops/roi.py", "import torch.nn.functional as F\n", "torch.nn.functional"),
        (
            "weaksam_jax/ops/roi.py",
            "def f():\n    from torchvision import ops\n",
            "torchvision.ops",
        ),
        (
            "weaksam_jax/detectors/mil/train.py",
            "from bridge.sam.networks import load_sam\n",
            "bridge.sam.networks.load_sam",
        ),
        (
            "weaksam_jax/detectors/mil/train.py",
            "from experiments.pipeline import runner\n",
            "experiments.pipeline.runner",
        ),
        ("bridge/sam/load.py", "import jax.numpy as jnp\n", "jax.numpy"),
        ("bridge/sam/load.py", "import importlib\nimportlib.import_module('jax')\n", "jax"),
        ("bridge/sam/load.py", "from weaksam_jax.ops import roi\n", "weaksam_jax.ops.roi"),
        ("bridge/sam/load.py", "from weaksam_jax import ops\n", "weaksam_jax.ops"),
        ("bridge/plugins.py", "from weaksam_jax import photos\n", "weaksam_jax.photos"),
        ("bridge/plugins.py", "from weaksam_jax.photos import load\n", "weaksam_jax.photos.load"),
        ("bridge/export.py", "import weaksam_jax.data.batches\n", "weaksam_jax.data.batches"),
        ("weaksam_jax/boxes.py", "import jax\n", "jax"),
        ("weaksam_jax/settings.py", "import optax\n", "optax"),
        ("weaksam_jax/flags.py", "import torch\n", "torch"),
        ("weaksam_jax/run_folder.py", "from . import photos\n", "weaksam_jax.photos"),
        (
            "weaksam_jax/cli.py",
            "from weaksam_jax.engine.step import Batch\n",
            "weaksam_jax.engine.step.Batch",
        ),
        ("weaksam_jax/data/formats/voc.py", "import grain\n", "grain"),
        (
            "weaksam_jax/data/formats/voc.py",
            "from ...ops.nms import nms\n",
            "weaksam_jax.ops.nms.nms",
        ),
        ("weaksam_jax/data/formats/voc.py", "from .. import batches\n", "weaksam_jax.data.batches"),
        (
            "weaksam_jax/data/views.py",
            "from .batches import Sample\n",
            "weaksam_jax.data.batches.Sample",
        ),
        ("weaksam_jax/data/batches.py", "import jax\n", "jax"),
        ("weaksam_jax/data/batches.py", "from .. import engine\n", "weaksam_jax.engine"),
        ("weaksam_jax/ops/roi.py", "from flax import linen as nn\n", "flax.linen"),
        (
            "weaksam_jax/engine/predict.py",
            "from weaksam_jax.detectors import mil\n",
            "weaksam_jax.detectors.mil",
        ),
        ("weaksam_jax/ops/nms.py", "import weaksam_jax.detectors\n", "weaksam_jax.detectors"),
        ("weaksam_jax/engine/step.py", "import flax.linen as nn\n", "flax.linen"),
        (
            "weaksam_jax/losses/drop.py",
            "from weaksam_jax import detectors\n",
            "weaksam_jax.detectors",
        ),
        (
            "weaksam_jax/backbones/vgg16.py",
            "import weaksam_jax.detectors.mil\n",
            "weaksam_jax.detectors.mil",
        ),
        ("weaksam_jax/photos.py", "import flax\n", "flax"),
    ],
)
def test_a_planted_violation_is_found(tmp_path, name, source, module):
    plant(tmp_path, name, source)
    found = boundaries.violations(tmp_path)
    line = source.count("\n")
    assert found and all(f.startswith(f"{name}:{line}: imports {module};") for f in found)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("weaksam_jax/data/batches.py", "import grain\n"),
        ("weaksam_jax/backbones/vgg16.py", "import flax.linen as nn\n"),
        ("weaksam_jax/detectors/mil/model.py", "import flax.linen as nn\nimport jax\n"),
        ("weaksam_jax/ops/roi.py", "import jax\nimport torchlike\n"),
        ("bridge/sam/load.py", "import torch\nfrom weaksam_jax.data.store import Proposals\n"),
        ("experiments/voc07.py", "import jax\nimport torch\n"),
    ],
)
def test_what_is_allowed_is_not_reported(tmp_path, name, source):
    plant(tmp_path, name, source)
    assert boundaries.violations(tmp_path) == []


def test_the_run_time_check_sees_an_import_behind_another_library(tmp_path):
    plant(tmp_path, "jax.py", "")
    plant(tmp_path, "innocent.py", "import jax\n")
    plant(tmp_path, "bridge/__init__.py", "")
    plant(tmp_path, "bridge/deep/__init__.py", "")
    plant(tmp_path, "bridge/deep/leaf.py", "import innocent\n")
    assert boundaries.violations(tmp_path) == []
    assert "jax" in boundaries.loaded_after_import(tmp_path, "bridge")


def test_a_module_that_cannot_be_imported_is_an_error_not_a_pass(tmp_path):
    plant(tmp_path, "bridge/__init__.py", "")
    plant(tmp_path, "bridge/broken.py", "import no_such_module_anywhere\n")
    with pytest.raises(RuntimeError, match="no_such_module_anywhere"):
        boundaries.loaded_after_import(tmp_path, "bridge")
