"""DLA's ImageNet weights, and timm's: the backbone alone, under our names without their prefix.

They say nothing of settings: AdelaiDet trains all of it on images that are not divided by their
standard deviation, though the weights were trained on such.
"""

from __future__ import annotations

from segdet.checkpoint.families.family import Family

DLA = Family("DLA", lambda names: "base_layer.0.weight" in names, lambda name: name)
