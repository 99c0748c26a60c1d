"""Models that training left in a folder."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from segdet.checkpoint import DetectionCheckpointer
from segdet.config import CfgNode, get_cfg
from segdet.modeling import build_model


def load_run(run: Path, device: str) -> tuple[CfgNode, nn.Module]:
    """A folder's config.yaml, and its model with the weights of model_final.pth, to evaluate."""
    cfg = get_cfg()
    cfg.merge_from_file(str(run / "config.yaml"))
    cfg.merge_from_list(["MODEL.DEVICE", device, "DATALOADER.NUM_WORKERS", 0])
    model = build_model(cfg).eval()
    DetectionCheckpointer(model, cfg=cfg).load(run / "model_final.pth")
    return cfg, model
