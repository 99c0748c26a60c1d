"""How well masks follow the outlines of objects: PointRend against Mask R-CNN.

    python -m benchmarks.trained.boundary output/demo output/demo_pointrend

Each folder is what training left: its config.yaml, and the weights in model_final.pth. Printed are
the AP of masks and their Boundary AP (arXiv:2103.16562) on the first of DATASETS.TEST.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.trained.load import load_run
from segdet.data import build_detection_test_loader
from segdet.evaluation import COCOEvaluator, inference_on_dataset


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model's line, in percent."""

    name: str
    segm_ap: float
    boundary_ap: float


def measure(run: Path, device: str) -> Row:
    """The line of the model in a folder that training left."""
    cfg, model = load_run(run, device)
    name = cfg.DATASETS.TEST[0]
    evaluator = COCOEvaluator(name, tasks=("segm", "boundary"))
    results = inference_on_dataset(model, build_detection_test_loader(cfg, name), evaluator)
    return Row(name=str(run), segm_ap=results["segm"]["AP"], boundary_ap=results["boundary"]["AP"])


def main() -> None:
    """Measure each folder and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, help="folders that training left")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    rows = [measure(run, args.device) for run in args.runs]
    for row in rows:
        print(f"{row.name}: segm AP {row.segm_ap:.2f}, Boundary AP {row.boundary_ap:.2f}")
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=2))


if __name__ == "__main__":
    main()
