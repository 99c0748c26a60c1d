"""How many parameters models have, in all and by part.

    python -m benchmarks.parameters configs/COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml ...

Counts those that a config trains and those that it freezes; the weights of frozen batch norm are
no parameters. Models are built on the meta device: nothing is allocated.
"""

from __future__ import annotations

import sys

import torch
from torch import nn

from segdet.config import get_cfg
from segdet.modeling import build_model


def millions(module: nn.Module) -> float:
    """Parameters of a module and all in it."""
    return sum(p.numel() for p in module.parameters()) / 1e6


def parts(model: nn.Module) -> dict[str, float]:
    """Millions by name: the model's parts, and those of its ROI heads instead of these."""
    found = {}
    for name, child in model.named_children():
        if name == "roi_heads":
            found |= {f"roi_heads.{part}": millions(m) for part, m in child.named_children()}
        else:
            found[name] = millions(child)
    return {name: number for name, number in found.items() if number}


def main() -> None:
    """A line for each config."""
    for file in sys.argv[1:]:
        cfg = get_cfg()
        cfg.merge_from_file(file)
        cfg.MODEL.DEVICE = "meta"
        with torch.device("meta"):
            model = build_model(cfg)
        by_part = ", ".join(f"{name} {number:.2f}" for name, number in parts(model).items())
        frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad) / 1e6
        print(f"{file}: {millions(model):.2f} M ({frozen:.2f} frozen): {by_part}")


if __name__ == "__main__":
    main()
