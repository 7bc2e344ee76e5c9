"""Synthetic full-size checkpoints in the published layout: the weights that the goldens were computed with."""
