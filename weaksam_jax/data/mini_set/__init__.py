"""The embedded mini set: painted scenes of seven classes, written as a VOCdevkit."""

from weaksam_jax.data.mini_set.scene import CLASSES, MiniObject, MiniScene, draw_scene
from weaksam_jax.data.mini_set.write import write_mini

__all__ = ["CLASSES", "MiniObject", "MiniScene", "draw_scene", "write_mini"]
