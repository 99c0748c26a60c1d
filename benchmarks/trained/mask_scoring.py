"""Whether mask scores tell how good masks are: Mask R-CNN against Mask Scoring R-CNN.

    python -m benchmarks.trained.mask_scoring output/demo output/demo_mask_scoring

Each folder is what training left: its config.yaml, and the weights in model_final.pth. Printed is
the correlation (Pearson's), over all detections in the first of DATASETS.TEST, of the score that
ranks a mask (`mask_scores`, or else `scores`) with its true IoU: the best with an object of its
class in its image, 0 where there is none; and that of the class scores alone. Masks that lie in a
crowd for the most part are left out.
Segm AP is that of the evaluation at the end of the training.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.trained.run import final_metric, load_run, main
from segdet.config import CfgNode
from segdet.data import DatasetCatalog, build_detection_test_loader
from segdet.data.annotations import masks_from_segmentations
from segdet.errors import ConfigError
from segdet.structures import BitMasks, Instances

IN_A_CROWD = 0.5  # of a mask's pixels


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model's line."""

    name: str
    correlation: float  # of mask score and true IoU
    by_class: float  # of class score and true IoU
    mean_iou: float
    detections: int
    segm_ap: float  # percent

    def __str__(self) -> str:
        return (
            f"{self.name}: correlation of mask score and true IoU {self.correlation:.3f} "
            f"(of class score {self.by_class:.3f}), mean IoU {self.mean_iou:.3f}, "
            f"{self.detections} detections, segm AP {self.segm_ap:.1f}"
        )


def measure(run: Path, device: str) -> Row:
    """The line of the model in a folder that training left."""
    cfg, model = load_run(run, device)
    ranks, scores, ious = (torch.cat(parts) for parts in zip(*results(model, cfg), strict=True))
    return Row(
        name=str(run),
        correlation=correlation(ranks, ious),
        by_class=correlation(scores, ious),
        mean_iou=ious.mean().item(),
        detections=len(ious),
        segm_ap=final_metric(run, "segm/AP"),
    )


@torch.no_grad()
def results(model: Any, cfg: CfgNode) -> Iterator[tuple[Tensor, ...]]:
    """Per image, the mask scores, class scores and true IoUs of its detections."""
    name = cfg.DATASETS.TEST[0]
    records = {record["image_id"]: record for record in DatasetCatalog.get(name)}
    for inputs in build_detection_test_loader(cfg, name):
        for image, output in zip(inputs, model(inputs), strict=True):
            yield scores_and_ious(output["instances"].to("cpu"), records[image["image_id"]])


def scores_and_ious(found: Instances, record: dict[str, Any]) -> tuple[Tensor, ...]:
    """Three of (N,): mask score, class score, true IoU of each detection that is not in a crowd.

    Args:
        found: in pixels of the image.
        record: of the image, with its annotations.
    """
    annotations = [a for a in record["annotations"] if a.get("segmentation")]
    size = record["height"], record["width"]
    segmentations = [a["segmentation"] for a in annotations]
    masks = masks_from_segmentations(segmentations, size, "bitmask")
    assert isinstance(masks, BitMasks), "as asked for"
    objects = masks.tensor.flatten(1).float()
    classes = torch.tensor([a["category_id"] for a in annotations], dtype=torch.int64)
    crowd = torch.tensor([bool(a.get("iscrowd")) for a in annotations], dtype=torch.bool)
    predicted = found.pred_masks.flatten(1).float()
    shared, areas = predicted @ objects.T, predicted.sum(1)  # (N, objects), (N,)
    ious = shared / (areas[:, None] + objects.sum(1) - shared).clamp(min=1)
    ious[(found.pred_classes[:, None] != classes) | crowd] = 0
    in_crowd = shared[:, crowd].amax(1) > IN_A_CROWD * areas if crowd.any() else areas < 0
    ranks = found.mask_scores if found.has("mask_scores") else found.scores
    best = ious.amax(1) if len(annotations) else torch.zeros(len(ious))
    return ranks[~in_crowd], found.scores[~in_crowd], best[~in_crowd]


def correlation(scores: Tensor, ious: Tensor) -> float:
    """Pearson's; needs two detections that differ."""
    if len(scores) < 2:
        raise ConfigError(f"a correlation needs detections, there are {len(scores)}")
    return torch.corrcoef(torch.stack((scores.double(), ious.double())))[0, 1].item()


if __name__ == "__main__":
    main(__doc__, measure)
