"""What measurements of trained models share: the folder that training left, and the command."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from segdet.checkpoint import DetectionCheckpointer
from segdet.config import CfgNode, get_cfg
from segdet.errors import DataError
from segdet.modeling import build_model


def load_run(run: Path, device: str) -> tuple[CfgNode, nn.Module]:
    """A folder's config.yaml, and its model with the weights of model_final.pth, to evaluate."""
    cfg = get_cfg()
    cfg.merge_from_file(str(run / "config.yaml"))
    cfg.merge_from_list(["MODEL.DEVICE", device, "DATALOADER.NUM_WORKERS", 0])
    model = build_model(cfg).eval()
    DetectionCheckpointer(model, cfg=cfg).load(run / "model_final.pth")
    return cfg, model


def final_metric(run: Path, name: str) -> float:
    """What the evaluation at the end of a training wrote into metrics.json."""
    for line in reversed((run / "metrics.json").read_text().splitlines()):
        if name in (scalars := json.loads(line)):
            return scalars[name]
    raise DataError(f"{run / 'metrics.json'} has no {name}: the run was not evaluated")


def main(description: str | None, measure: Callable[[Path, str], Any]) -> None:
    """Measure each folder of the command line and print its row.

    Args:
        description: of the command.
        measure: folder and device -> a row, a dataclass.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, help="folders that training left")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    rows = [measure(run, args.device) for run in args.runs]
    print(*rows, sep="\n")
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=2))
