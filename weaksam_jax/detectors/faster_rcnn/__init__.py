"""Retraining: a fully supervised detector with drop-masked losses on pseudo ground truth."""
