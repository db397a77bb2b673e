"""Another backbone: a Flax module and one row in the table. Shows the shapes of what Faster R-CNN
finds with fresh weights (here the row is added at run time; in the repository it stands in
weaksam_jax/backbones/__init__.py)."""

import flax.linen as nn
import jax
import numpy as np

from weaksam_jax.backbones import BACKBONES, Backbone
from weaksam_jax.detectors.faster_rcnn import FasterRcnn
from weaksam_jax.detectors.faster_rcnn.config import mini
from weaksam_jax.settings import change


class Patches(nn.Module):
    """Images `[B, H, W, 3]` -> maps at strides 8, 16, 32: patches, then halved twice."""

    width: int | None = None
    dtype: type = np.float32

    @nn.compact
    def __call__(self, images):
        maps = [nn.relu(nn.Conv(self.width or 32, (8, 8), (8, 8))(images))]
        for _ in range(2):
            maps.append(nn.relu(nn.Conv(2 * maps[-1].shape[-1], (2, 2), (2, 2))(maps[-1])))
        return tuple(maps)


BACKBONES["patches"] = Backbone("mini", pyramid=Patches, strides=(8, 16, 32), scratch=True)

detector = FasterRcnn(change(mini(), {"model.backbone": "patches"}), ("cat", "dog"))
batch = {"image": np.zeros((1, 96, 128, 3), np.uint8), "size": np.float32([[96, 128]])}
params = detector.init(jax.random.key(0), batch)
found = jax.jit(detector.predict)(params, batch)
print({name: value.shape for name, value in found._asdict().items() if value is not None})
