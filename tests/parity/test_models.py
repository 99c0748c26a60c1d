"""Whole models against the originals: same weights and input, same outputs, losses, gradients.

The bars are those of the golden data's README; the float64 ones are ours, set about ten times
above what was measured, because the reference itself is a float64 run.
"""

import re
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from segdet.config import get_cfg
from segdet.errors import ConfigError
from segdet.modeling import build_model
from segdet.modeling.mask_head import MASK_HEADS
from segdet.modeling.meta_arch import OFFICIAL_NAMES, BlendMask, system_name
from segdet.modeling.meta_arch.cascade_rcnn import CascadeROIHeads
from segdet.modeling.meta_arch.centermask import CenterROIHeads
from segdet.modeling.meta_arch.mask_rcnn_c4 import Res5ROIHeads
from segdet.modeling.meta_arch.pointrend import PointRendMaskHead
from segdet.modeling.roi_heads import ROIHeads
from segdet.modeling.sem_seg_head import SEM_SEG_HEADS
from segdet.modeling.system import System
from segdet.structures import BitMasks, Boxes, Detections, Keypoints, PolygonMasks, Targets


@dataclass(frozen=True)
class Bars:
    intermediate: float  # of the tensor's standard deviation
    box: float  # pixels
    score: float
    loss: float  # relative
    mask_loss: float  # relative
    grad: float  # relative, of the norm
    pixels: int  # of a label map, that differ


# Keys of AdelaiDet's tree that are for systems which segdet does not have, or have no effect.
OF_OTHER_SYSTEMS = re.compile(
    r"MODEL\.(BATEXT|BiFPN|BOXINST|CONDINST|FCPOSE|FCPOSE_ON|MEInst|SOLOV2|TOP_MODULE|"
    r"BACKBONE\.ANTI_ALIAS|DLA\.OUT_FEATURES)\b"
)
BARS = {
    torch.float32: Bars(2e-4, 1e-2, 1e-4, 1e-5, 1e-4, 5e-3, 5),
    # Samples are stored as float32, and the reference summed most of its losses in it.
    torch.float64: Bars(1e-6, 1e-8, 1e-10, 2e-7, 2e-7, 1e-6, 0),
}


def why_not_built(resolved: dict) -> str | None:
    """What the case needs that segdet does not have yet."""
    try:
        system_name(resolved)
    except ConfigError as error:
        return str(error)
    heads = {"MODEL.ROI_MASK_HEAD.NAME": MASK_HEADS, "MODEL.SEM_SEG_HEAD.NAME": SEM_SEG_HEADS}
    unknown = [
        f"{key} {resolved[key]}"
        for key, built in heads.items()
        if resolved[key] not in {*built, *(row.get(key) for row, _ in OFFICIAL_NAMES)}
    ]
    return ", ".join(unknown) or None


class Case:
    """One golden case and our model with its weights, in one precision."""

    def __init__(self, fixture, dtype: torch.dtype) -> None:
        self.fixture, self.meta, self.dtype = fixture, fixture.meta, dtype
        cfg = get_cfg()
        for key, value in self.meta["resolved_config"].items():
            if not OF_OTHER_SYSTEMS.match(key):
                cfg.merge_from_list([key, value])
        cfg.merge_from_list(self.meta["overrides"])
        self.cfg = cfg
        self.model = build_model(cfg)
        names = [[n, list(t.shape)] for n, t in self.model.state_dict().items()]
        assert names == [entry[:2] for entry in self.meta["state_dict"]]
        weights = {n: torch.from_numpy(w) for n, w in fixture.weights().items()}
        self.model.load_state_dict(weights, strict=True)
        self.model.to(dtype)
        self.points = None  # (P, 2) within each region, where the case stores random choices
        if "train/point_coords" in fixture.arrays:
            self.points = torch.from_numpy(fixture.arrays["train/point_coords"]).to(dtype)
            for part in self.model.modules():
                if hasattr(part, "sample_points"):
                    part.sample_points = self.take_stored_points

    def take_stored_points(self, coarse_logits: Tensor, _uncertainty: object) -> Tensor:
        """In place of the random choice of points."""
        return self.points.expand(len(coarse_logits), -1, -1)

    def image(self, rgb: np.ndarray) -> Tensor:
        """(3, H, W) in the network's channel order."""
        image = torch.from_numpy(np.array(rgb)).permute(2, 0, 1)
        return image.flip(0) if self.meta["input"]["network_order"] == "BGR" else image

    def eval_inputs(self) -> list[dict]:
        height, width = self.meta["input"]["out_hw"]
        return [{"image": self.image(self.fixture.image), "height": height, "width": width}]

    def train_inputs(self) -> list[dict]:
        return [self.train_input(i) for i in range(2)]

    def train_input(self, i: int) -> dict:
        given = {
            name.split("/")[-1]: torch.from_numpy(self.fixture.arrays[name])
            for name in self.fixture.arrays
            if name.startswith(f"train/{i}/") and not name.endswith("image_rgb")
        }
        image = self.image(self.fixture.arrays[f"train/{i}/image_rgb"])
        inputs = {"image": image}
        for key in ("sem_seg", "basis_sem"):
            if key in given:
                inputs[key] = given[key].long()
        if "boxes" in given:
            inputs["instances"] = self.targets(i, given, tuple(image.shape[1:]))
        return inputs

    def targets(self, i: int, given: dict[str, Tensor], image_size: tuple[int, int]) -> Targets:
        targets = Targets(
            image_size,
            gt_boxes=Boxes(given["boxes"].to(self.dtype)),
            gt_classes=given["classes"],
        )
        if "polygons" in self.meta["train"]:
            targets.gt_masks = PolygonMasks(self.meta["train"]["polygons"][i])
        if "masks_packed" in given:
            targets.gt_masks = BitMasks(self.fixture.masks(f"train/{i}"))
        if "keypoints" in given:
            targets.gt_keypoints = Keypoints(given["keypoints"].to(self.dtype))
        return targets

    def check_sample(self, key: str, ours: Tensor) -> None:
        report = self.fixture.compare_sample(key, ours.detach().double().numpy())
        bar = BARS[self.dtype].intermediate
        if self.points is not None:
            bar = max(bar, 2e-5)  # the reference rounds regular grids of points to float32
        assert report["max_abs_over_std"] < bar, f"{key}: {report}"


@pytest.fixture(scope="module", params=["float32", pytest.param("float64", marks=pytest.mark.slow)])
def case(
    request: pytest.FixtureRequest, model_case: str, model_fixture: ModuleType, projects: None
) -> Case:
    fixture = model_fixture.Fixture("models", model_case)
    reason = why_not_built(fixture.meta["resolved_config"])
    if reason:
        pytest.skip(f"{model_case}: not built yet: {reason}")
    return Case(fixture, getattr(torch, request.param))


def selected(model: System, output: object, selector: str) -> Tensor:
    """`0.1` is level 1 of item 0, `p3` the map of that name."""
    for step in filter(None, selector.split(".")):
        output = output[int(step)] if step.isdigit() else output[step]
    if isinstance(model, BlendMask) and selector.startswith("3."):
        return model.top_layer(output)  # the attention, of which the model computes a few cells
    return output


def run_recording(case: Case) -> tuple[dict, dict[str, Tensor]]:
    """The model's output, and the intermediates that the case stores."""
    recorded: dict[str, Tensor] = {}
    wanted = [k for k in case.meta["samples"] if k.startswith("mid/")]
    hooks = []
    for path in {k.removeprefix("mid/").partition(":")[0] for k in wanted}:

        def record(_module, _args, output, path=path) -> None:
            for key in wanted:
                owner, _, selector = key.removeprefix("mid/").partition(":")
                if owner == path:
                    recorded[key] = selected(case.model, output, selector)

        hooks.append(case.model.get_submodule(path).register_forward_hook(record))
    with torch.no_grad():
        output = case.model.eval()(case.eval_inputs())[0]
    for hook in hooks:
        hook.remove()
    return output, recorded


def test_results_and_intermediates(case: Case) -> None:
    output, recorded = run_recording(case)
    assert set(recorded) == {k for k in case.meta["samples"] if k.startswith("mid/")}
    for key, tensor in recorded.items():
        case.check_sample(key, tensor)
    stored = {"det/boxes": "instances", "sem_seg_argmax": "sem_seg", "panoptic_seg": "panoptic_seg"}
    assert set(output) == {name for key, name in stored.items() if key in case.fixture.arrays}
    compare = {
        "instances": compare_detections,
        "sem_seg": compare_sem_seg,
        "panoptic_seg": compare_panoptic_seg,
    }
    for name, found in output.items():
        compare[name](case, found)


def compare_detections(case: Case, found: Detections) -> None:
    masks = found.pred_masks.numpy() if found.has("pred_masks") else None
    report = case.fixture.compare_detections(
        found.pred_boxes.tensor.numpy(), found.scores.numpy(), found.pred_classes.numpy(), masks
    )
    bars = BARS[case.dtype]
    assert report["same_set"] and report["sorted"], report
    assert report["box_px"] < bars.box and report["score"] < bars.score, report
    if masks is not None:
        boxes = found.pred_boxes.area().sum().item()
        assert report["mask_pixels"] <= 1e-4 * boxes, report
        assert report["mask_pixels_all"] <= 2e-2 * boxes, report
    assert found.has("mask_scores") == ("det/mask_scores" in case.fixture.arrays)
    if found.has("mask_scores"):
        gap = np.abs(found.mask_scores.numpy() - of_nearest_box(case, found, "mask_scores"))
        assert gap.max() < bars.score, gap.max()
    if found.has("pred_keypoints"):
        compare_keypoints(case, found)


def of_nearest_box(case: Case, found: Detections, name: str) -> np.ndarray:
    """A field of the reference, for each of ours that of the nearest box of its class."""
    boxes, classes, expected = (case.fixture.arrays[f"det/{k}"] for k in ("boxes", "classes", name))
    far = np.abs(found.pred_boxes.tensor.numpy()[:, None] - boxes).max(axis=2)
    far = np.where(found.pred_classes.numpy()[:, None] == classes, far, np.inf)
    return expected[far.argmin(axis=1)]


def compare_keypoints(case: Case, found: Detections) -> None:
    """Each instance's against those of the reference's nearest box."""
    gap = np.abs(found.pred_keypoints.numpy() - of_nearest_box(case, found, "keypoints"))
    bars = BARS[case.dtype]
    position = max(bars.box, 1e-4)  # the reference rounds positions to float32 in both runs
    assert gap[..., :2].max() < position and gap[..., 2].max() < bars.score, gap.max((0, 1))


def compare_sem_seg(case: Case, logits: Tensor) -> None:
    case.check_sample("sem_seg_logits", logits)
    labels = logits.argmax(dim=0).numpy()
    assert (labels != case.fixture.arrays["sem_seg_argmax"]).sum() <= BARS[case.dtype].pixels


def compare_panoptic_seg(case: Case, found: tuple[Tensor, list[dict]]) -> None:
    bars = BARS[case.dtype]
    panoptic_map, segments = found
    assert (panoptic_map.numpy() != case.fixture.arrays["panoptic_seg"]).sum() <= bars.pixels
    expected = case.meta["info"]["panoptic_segments_info"]
    tolerances = {"score": bars.score, "area": bars.pixels}
    for ours, theirs in zip(segments, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            assert ours[key] == pytest.approx(value, rel=0, abs=tolerances.get(key, 0)), key


@torch.no_grad()
def test_proposals(case: Case) -> None:
    if "proposals/boxes" not in case.meta["samples"]:
        pytest.skip("a system without proposals")
    model = case.model.eval()
    images = model.preprocess_image(case.eval_inputs())
    case.check_sample("fixed/preprocessed", images.tensor)
    proposals = model.proposal_generator.predict(images, model.backbone(images.tensor))[0]
    expected = case.fixture.arrays["sample/proposals/boxes"].reshape(-1, 4)
    ours = proposals.proposal_boxes.tensor.numpy()
    assert list(ours.shape) == case.meta["samples"]["proposals/boxes"]["shape"]
    # Near ties may swap rows, so each expected box only has to be among ours.
    nearest = np.abs(expected[:, None] - ours[None]).max(axis=2).min(axis=1)
    assert (nearest < BARS[torch.float32].box).all(), np.sort(nearest)[-5:]


@torch.no_grad()
def test_heads_on_fixed_boxes(case: Case) -> None:
    stored = {k.removeprefix("fixed/") for k in case.meta["samples"] if k.startswith("fixed/")}
    if not stored:
        pytest.skip("a system without heads on regions")
    model = case.model.eval()
    boxes = [torch.from_numpy(case.fixture.arrays["fixed_boxes"]).to(case.dtype)]
    images = model.preprocess_image(case.eval_inputs())
    features = model.backbone(images.tensor)
    if isinstance(model, BlendMask):
        attention = torch.from_numpy(case.fixture.arrays["fixed_attention"]).to(case.dtype)
        ours = outputs_of_blender(model, features, boxes, attention)
    elif isinstance(model.roi_heads, CenterROIHeads):
        ours = outputs_of_scored_masks(model.roi_heads, features, boxes, images.image_sizes)
    else:
        ours = outputs_of_heads(model.roi_heads, features, boxes)
        if isinstance(model.roi_heads.mask_head, PointRendMaskHead):
            ours |= outputs_of_points(model.roi_heads.mask_head, features, boxes, case.points)
    assert stored - {"preprocessed"} == set(ours)
    for name, tensor in ours.items():
        case.check_sample(f"fixed/{name}", tensor)


def outputs_of_heads(
    heads: ROIHeads, features: dict[str, Tensor], boxes: list[Tensor]
) -> dict[str, Tensor]:
    """What the heads give for one image's boxes, under the names of the cases."""
    ours: dict[str, Tensor] = {}
    mask_input = None
    if isinstance(heads, Res5ROIHeads):
        ours["box_pooled"] = heads.pooler([features[heads.in_feature]], boxes)
        ours["res5"] = mask_input = heads.res5(ours["box_pooled"])
        ours["cls_logits"], ours["box_deltas"] = heads.box_predictor(mask_input.mean(dim=(2, 3)))
    else:
        maps = [features[name] for name in heads.in_features]
        ours["box_pooled"] = pooled = heads.box_pooler(maps, boxes)
        if isinstance(heads, CascadeROIHeads):
            stages = zip(heads.box_head, heads.box_predictor, strict=True)
            for k, (head, predictor) in enumerate(stages):
                at = f"stage{k}"
                ours[f"{at}/cls_logits"], ours[f"{at}/box_deltas"] = predictor(head(pooled))
        else:
            ours["cls_logits"], ours["box_deltas"] = heads.box_predictor(heads.box_head(pooled))
        if heads.mask_pooler is not None:
            ours["mask_pooled"] = mask_input = heads.mask_pooler(maps, boxes)
        if heads.keypoint_pooler is not None:
            ours["keypoint_logits"] = heads.keypoint_head(heads.keypoint_pooler(maps, boxes))
    if mask_input is not None and heads.mask_head is not None:
        ours |= outputs_of_masks(heads.mask_head(mask_input))
    return ours


def outputs_of_masks(logits: Tensor) -> dict[str, Tensor]:
    """Row i as of class i."""
    rows = torch.arange(len(logits))
    own = logits[rows, rows % logits.shape[1]]
    return {"mask_logits_class_i_mod_K": own, "mask_probs_given_boxes": own.sigmoid()[:, None]}


def outputs_of_scored_masks(
    heads: CenterROIHeads,
    features: dict[str, Tensor],
    boxes: list[Tensor],
    image_sizes: list[tuple[int, int]],
) -> dict[str, Tensor]:
    """What CenterMask's heads give for one image's boxes, row i as of class i."""
    maps = [features[name] for name in heads.in_features]
    ours = {"mask_pooled": heads.mask_pooler(maps, boxes, image_sizes)}
    ours |= outputs_of_masks(heads.mask_head(ours["mask_pooled"]))
    probabilities = ours["mask_probs_given_boxes"][:, 0]
    ours["maskiou_all_classes"] = ious = heads.maskiou_head(ours["mask_pooled"], probabilities)
    rows = torch.arange(len(ious))
    found = Detections(
        image_sizes[0],
        pred_boxes=Boxes(boxes[0]),
        scores=torch.from_numpy(np.linspace(0.9, 0.2, len(rows))).to(ious.dtype),
        pred_classes=rows % ious.shape[1],
    )
    ours["mask_scores_given_boxes"] = heads.predict_masks(features, [found])[0].mask_scores
    return ours


def outputs_of_blender(
    model: BlendMask, features: dict[str, Tensor], boxes: list[Tensor], attention: Tensor
) -> dict[str, Tensor]:
    """The masks of one image's boxes with this attention (N, K * A * A)."""
    bases = model.basis_module(features)
    pooled = model.blender.pool(bases, boxes)
    blended = model.blender(pooled, attention).flatten(1)
    return {"bases": bases, "pooled_bases": pooled, "blended_logits": blended}


def outputs_of_points(
    head: PointRendMaskHead, features: dict[str, Tensor], boxes: list[Tensor], points: Tensor
) -> dict[str, Tensor]:
    """The mask branch of PointRend on one image's boxes, at the same points of each."""
    rows = torch.arange(len(boxes[0]))
    points = points.expand(len(rows), -1, -1)
    coarse = head.coarse_logits(features, boxes)
    logits = head.point_logits(features, boxes, coarse, points)
    classes = rows % coarse.shape[1]
    return {
        "coarse_pooled": head.pooler(features, boxes),
        "coarse_logits_class_i_mod_K": coarse[rows, classes],
        "point_fine_features": head.fine_features(features, boxes, points),
        "point_logits_class_i_mod_K": logits[rows, classes],
        "mask_probs_given_boxes": head.predict(features, boxes, classes).sigmoid(),
    }


def test_losses_and_gradients(case: Case) -> None:
    model, train, bars = case.model.train(), case.meta["train"], BARS[case.dtype]
    model.zero_grad()
    losses = model(case.train_inputs())
    losses.total().backward()
    for name, buffer in model.named_buffers():
        if (key := f"buffer_after_train_forward/{name}") in case.meta["samples"]:
            case.check_sample(key, buffer)
    assert set(losses) == set(train["losses"])
    for name, expected in train["losses"].items():
        bar = bars.mask_loss if "mask" in name else bars.loss
        assert losses[name].item() == pytest.approx(expected, rel=bar), name
    parameters = dict(model.named_parameters())
    for name, expected in train["grad_norms"].items():
        assert parameters[name].grad.norm().item() == pytest.approx(expected, rel=bars.grad), name
        case_std = case.meta["samples"][f"grad/{name}"]["std"]
        report = case.fixture.compare_sample(f"grad/{name}", parameters[name].grad.double().numpy())
        assert report["max_abs"] <= bars.grad * max(case_std, expected), (name, report)
    frozen = {n for n, p in parameters.items() if not p.requires_grad}
    assert frozen == set(train["params_without_grad"])
    for name, expected in train["storage_scalars"].items():
        if name == "point/accuracy":  # the original truncates soft labels: 1 - 1e-16 is background
            assert float(losses.metrics[name]) == pytest.approx(expected, rel=0.05)
            continue
        assert float(losses.metrics[name]) == pytest.approx(expected, rel=1e-4, abs=1e-6), name
