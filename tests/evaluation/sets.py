"""Small data sets and predictions for COCO's metrics."""

import numpy as np
import torch

from segdet.evaluation.coco_records import GroundTruth, Predictions
from segdet.evaluation.rle import encode_masks

SIZE = (200, 240)  # room for large objects, > 96^2 pixels


def ellipses(boxes: np.ndarray) -> list[dict]:
    """One RLE inside each XYWH box."""
    y, x = torch.meshgrid(torch.arange(SIZE[0]) + 0.5, torch.arange(SIZE[1]) + 0.5, indexing="ij")
    bx, by, bw, bh = torch.as_tensor(boxes).reshape(-1, 4).clamp(min=1e-6).T[..., None, None]
    masks = ((x - bx - bw / 2) / bw) ** 2 + ((y - by - bh / 2) / bh) ** 2 <= 0.25
    return encode_masks(masks)


def truth_of(image, category, boxes, crowd=None, *, images=1, categories=1) -> GroundTruth:
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    return GroundTruth(
        source="here",
        annotated=True,
        image_ids=list(range(images)),
        image_sizes=np.array([SIZE] * images),
        category_ids=list(range(categories)),
        category_names=[f"class {k}" for k in range(categories)],
        image=np.asarray(image, dtype=np.int64),
        category=np.asarray(category, dtype=np.int64),
        boxes=boxes,
        areas=boxes[:, 2] * boxes[:, 3] * 0.8,
        crowd=np.zeros(len(boxes), bool) if crowd is None else np.asarray(crowd),
        masks=ellipses(boxes),
    )


def found_of(image, category, scores, boxes) -> Predictions:
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    return Predictions(
        image=np.asarray(image, dtype=np.int64),
        category=np.asarray(category, dtype=np.int64),
        scores=np.asarray(scores, dtype=np.float64),
        boxes=boxes,
        masks=ellipses(boxes),
    )


def random_boxes(rng: np.random.Generator, number: int) -> np.ndarray:
    """XYWH of all three of COCO's sizes."""
    side = np.exp(rng.uniform(np.log(4), np.log(150), (number, 2)))
    return np.concatenate([rng.uniform(-5, 150, (number, 2)), side], axis=1).round(1)


def random_set(seed: int) -> tuple[GroundTruth, Predictions]:
    """Crowds, classes and images without objects, jittered finds, duplicates, tied scores."""
    rng = np.random.default_rng(seed)
    images, categories, number = 6, 4, int(rng.integers(5, 40))
    boxes = random_boxes(rng, number)
    truth = truth_of(
        rng.integers(0, images - 1, number),
        rng.integers(0, categories - 1, number),
        boxes,
        rng.random(number) < 0.2,
        images=images,
        categories=categories,
    )
    chosen = rng.integers(0, number, 3 * number)
    jitter = rng.normal(0, 0.06, (len(chosen), 4)) * boxes[chosen][:, [2, 3, 2, 3]]
    moved = np.concatenate([boxes[chosen] + jitter.round(1), random_boxes(rng, number)])
    moved[:, 2:] = moved[:, 2:].clip(min=0)
    image = np.concatenate([truth.image[chosen], rng.integers(0, images, number)])
    category = np.concatenate([truth.category[chosen], rng.integers(0, categories, number)])
    scores = rng.integers(1, 10, len(moved)) / 10  # ties
    order = rng.permutation(len(moved))
    return truth, found_of(image[order], category[order], scores[order], moved[order])
