"""How well masks follow the outlines of objects: PointRend against Mask R-CNN.

    python -m benchmarks.trained.boundary output/demo output/demo_pointrend

Each folder is what training left: its config.yaml, and the weights in model_final.pth. Printed are
the AP of masks and their Boundary AP (arXiv:2103.16562) on the first of DATASETS.TEST.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.trained.run import load_run, main
from segdet.data import build_detection_test_loader
from segdet.evaluation import COCOEvaluator, inference_on_dataset


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model's line, in percent."""

    name: str
    segm_ap: float
    boundary_ap: float

    def __str__(self) -> str:
        return f"{self.name}: segm AP {self.segm_ap:.2f}, Boundary AP {self.boundary_ap:.2f}"


def measure(run: Path, device: str) -> Row:
    """The line of the model in a folder that training left."""
    cfg, model = load_run(run, device)
    name = cfg.DATASETS.TEST[0]
    evaluator = COCOEvaluator(name, tasks=("segm", "boundary"))
    results = inference_on_dataset(model, build_detection_test_loader(cfg, name), evaluator)
    return Row(name=str(run), segm_ap=results["segm"]["AP"], boundary_ap=results["boundary"]["AP"])


if __name__ == "__main__":
    main(__doc__, measure)
