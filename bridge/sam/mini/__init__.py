"""A small promptable segmenter behind segment_anything's own interface."""

from bridge.sam.mini.model import build_sam_mini, load_sam_mini

__all__ = ["build_sam_mini", "load_sam_mini"]
