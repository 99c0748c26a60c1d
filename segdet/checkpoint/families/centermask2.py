"""CenterMask2's ImageNet weights: the backbone alone, under our names without their prefix."""

from __future__ import annotations

from segdet.checkpoint.families.family import Family

CENTERMASK2_VOVNET = Family(
    "CenterMask2's VoVNet",
    lambda names: "stem.stem_1/conv.weight" in names,
    lambda name: name,
)
CENTERMASK2_MOBILENET_V2 = Family(
    "CenterMask2's MobileNetV2",
    lambda names: "features.1.conv.3.weight" in names,  # torchvision has features.1.conv.1
    lambda name: name,
)
