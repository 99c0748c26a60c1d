"""Every op case of the golden data: same input, the originals' output and gradients.

Which op a case is for, its parameters and its tolerance are read from the case, so other folders of
the same format (`SEGDET_PARITY_DIR`) need no new code.
"""

import functools
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from segdet.data.rle import decode_rle, rle_runs
from segdet.evaluation.rle import encode_masks
from segdet.layers import giou_loss, paste_masks_in_image
from segdet.modeling.anchors import DefaultAnchorGenerator
from segdet.ops import (
    batched_nms,
    box_iou_rotated,
    cluster_nms,
    cross_class_fast_nms,
    deform_conv2d,
    fast_nms,
    matrix_nms,
    nms,
    nms_rotated,
    point_sample,
    ps_roi_align,
    ps_roi_pool,
    roi_align,
    soft_nms,
)
from segdet.structures import polygons_to_bitmask
from segdet.structures.boxes import box_area, box_intersection, box_iou

SHARED = Path(__file__).resolve().parents[3] / "shared"
PARITY_DIR = Path(os.environ.get("SEGDET_PARITY_DIR", SHARED / "parity")).resolve()


@functools.cache
def reader() -> ModuleType:
    """`op_fixture` of the folder under test."""
    spec = importlib.util.spec_from_file_location("op_fixture", PARITY_DIR / "op_fixture.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def load(fixture: str) -> tuple[dict, dict]:
    return reader().load("ops", fixture)


class Case:
    def __init__(self, fixture: str, name: str, dtype: torch.dtype) -> None:
        self.fixture, self.name, self.dtype = fixture, name, dtype
        meta, data = load(fixture)
        described = meta["cases"][name]
        self.params, self.tol, self.notes = (described[k] for k in ("params", "tol", "notes"))
        self.arrays, self.siblings = data.get(name, {}), data

    def __contains__(self, field: str) -> bool:
        return field in self.arrays

    def __getitem__(self, field: str) -> np.ndarray:
        """An array of the case, or the one that its fixture stores once for all cases."""
        for arrays in (self.arrays, *self.siblings.values()):
            if field in arrays:
                return arrays[field]
        raise KeyError(f"{self.fixture}/{self.name} has no {field}")

    def tensor(self, field: str) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(self[field])).to(self.dtype)

    def masks(self, field: str, shape: tuple[int, ...]) -> np.ndarray:
        bits = np.unpackbits(self[field], count=int(np.prod(shape)))
        return bits.reshape(shape).astype(bool)

    def check(self, field: str, ours: Tensor) -> None:
        self.compare(ours, self[field], field)

    def compare(self, ours: Tensor, expected: np.ndarray, field: str = "") -> None:
        precision = "f32" if self.dtype == torch.float32 else "f64"
        own = f"{field}_{precision}"
        tolerance = self.tol[own if own in self.tol else precision]
        if expected.dtype == np.float32 and expected.size:  # all that is known of it
            tolerance = max(tolerance, np.finfo(np.float32).eps * np.abs(expected).max())
        assert reader().diff(ours.detach().numpy(), expected) <= tolerance

    def skip(self, what: str) -> None:
        pytest.skip(f"{self.fixture}/{self.name}: {what} is not built yet")


def check_roi_align(case: Case) -> None:
    maps = case.tensor("x").requires_grad_()
    rule = {k: v for k, v in case.params.items() if k != "x"}
    out = roi_align(maps, case.tensor("rois"), **rule | {"output_size": tuple(rule["output_size"])})
    if "optional" in case.notes:  # invalid regions: only the process has to survive
        assert out.shape == case["out"].shape
        return
    case.check("out", out)
    (grad,) = torch.autograd.grad(out, maps, case.tensor("grad_out"))
    case.check("dx", grad)


def check_nms(case: Case) -> None:
    if "masks" in case:
        check_matrix_nms(case)
        return
    boxes, scores = case.tensor("boxes"), case.tensor("scores")
    threshold = case.params["iou_threshold"]
    if "method" in case.params:
        rule = {k: case.params[k] for k in ("method", "sigma", "min_score")}
        kept, lowered = soft_nms(boxes, scores, threshold, **rule)
        case.compare(lowered, case["out_scores"], "scores")
    elif "top_k" in case.params:
        check_fast_nms(case, boxes, scores)
        return
    elif "iterations" in case.params:
        kept = cluster_nms(boxes, scores, threshold, case.params["iterations"])
    elif "idxs" in case:
        kept = batched_nms(boxes, scores, torch.from_numpy(case["idxs"]).long(), threshold)
    else:
        kept = nms(boxes, scores, threshold)
    if "keep" in case:
        assert kept.tolist() == case["keep"].tolist()
    else:  # not required: only the process has to survive
        assert len(kept.unique()) == len(kept)


def check_deform_conv(case: Case) -> None:
    fields = [name for name in ("x", "offset", "weight", "bias", "mask") if name in case]
    inputs = {name: case.tensor(name).requires_grad_() for name in fields}
    rule = {name: case.params[name] for name in ("stride", "padding", "dilation")}
    out = deform_conv2d(
        inputs["x"],
        inputs["offset"],
        inputs["weight"],
        inputs.get("bias"),
        mask=inputs.get("mask"),
        **rule,
    )
    case.check("out", out)
    grads = torch.autograd.grad(out, list(inputs.values()), case.tensor("grad_out"))
    for name, grad in zip(fields, grads, strict=True):
        case.check(f"d{name}", grad)


def check_fast_nms(case: Case, boxes: Tensor, scores: Tensor) -> None:
    threshold, top_k = case.params["iou_threshold"], case.params["top_k"]
    most = case.params["max_num_detections"]
    per_class = fast_nms(boxes, scores, threshold, top_k, most)
    across = cross_class_fast_nms(boxes, scores, threshold, top_k)
    for prefix, found in (("", per_class), ("cc_", across)):
        for field, ours in zip(("prior", "cls", "score"), found, strict=True):
            assert ours.tolist() == case[prefix + field].tolist()


def check_matrix_nms(case: Case) -> None:
    masks = torch.from_numpy(case.masks("masks", tuple(case["mask_shape"])))
    labels = torch.from_numpy(case["labels"])
    case.check("out_scores", matrix_nms(masks, case.tensor("scores"), labels, **case.params))


def check_box_iou(case: Case) -> None:
    a, b = case.tensor("a"), case.tensor("b")
    case.compare(box_iou(a, b), np.nan_to_num(case["iou"]))  # 0 for two empty boxes
    pairs = torch.broadcast_tensors(a[:, None], b[None])
    case.check("giou", 1 - giou_loss(*pairs, eps=0.0))


def check_rotated(case: Case) -> None:
    if "iou" in case:
        case.check("iou", box_iou_rotated(case.tensor("a"), case.tensor("b")))
    else:
        threshold = case.params["iou_threshold"]
        kept = nms_rotated(case.tensor("boxes"), case.tensor("scores"), threshold)
        assert kept.tolist() == case["keep"].tolist()


def check_anchors(case: Case) -> None:
    p = case.params
    generator = DefaultAnchorGenerator(
        sizes=p["sizes"], aspect_ratios=p["aspect_ratios"], strides=p["strides"], offset=p["offset"]
    )
    levels = generator([torch.zeros(1, 1, *shape) for shape in p["feature_shapes"]])
    for level, anchors in enumerate(levels):
        case.check(f"level{level}", anchors)


def check_paste_masks(case: Case) -> None:
    masks, boxes = case.tensor("masks"), case.tensor("boxes")
    image = tuple(case.params["image"])
    pasted = paste_masks_in_image(masks, boxes, image, case.params["threshold"]).numpy()
    assert pasted.shape == (len(masks), *image)
    if "out" in case:
        unsure = case.masks("near", pasted.shape)
        wrong = (pasted != case.masks("out", pasted.shape)) & ~unsure
        assert wrong.sum() <= case.tol["pixels_outside_near"]
    else:  # boxes without extent, or no boxes
        assert not pasted.any()


def check_rle(case: Case) -> None:
    if "strings" in case and "area" in case:
        check_rle_strings(case)
    elif "polygons" in case.params:
        size = case.params["size"]
        for i, polygon in enumerate(case.params["polygons"]):
            mask = polygons_to_bitmask([np.array(polygon, np.float64)], *size)
            assert np.array_equal(mask, case["masks"][..., i].astype(bool))
            encoded = encode_masks(torch.from_numpy(mask)[None])[0]
            assert encoded["counts"] == case.params["strings"][i]
    elif "dt" in case:
        dt, gt = (case.tensor(field) for field in ("dt", "gt"))
        dt, gt = (torch.cat([b[:, :2], b[:, :2] + b[:, 2:]], dim=1) for b in (dt, gt))
        of_detection = box_intersection(dt, gt) / box_area(dt)[:, None]
        crowd = torch.tensor(case.params["iscrowd"], dtype=torch.bool)
        case.check("iou", torch.where(crowd, of_detection, box_iou(dt, gt)))
    else:
        strings = case["strings"].tobytes().decode().split("\n")
        for field, merged in (("union", np.any), ("intersection", np.all)):
            first, last = map(int, case.params[f"{field}_of"].split(".."))
            rles = [{"size": case[field].shape, "counts": s} for s in strings[first : last + 1]]
            masks = np.stack([decode_rle(rle) for rle in rles])
            assert np.array_equal(merged(masks, axis=0), case[field].astype(bool))


def check_rle_strings(case: Case) -> None:
    masks = case.masks("masks", tuple(case["shape"]))
    strings = case["strings"].tobytes().decode().split("\n")
    encoded = encode_masks(torch.from_numpy(masks))
    for i, mask in enumerate(masks):
        assert encoded[i]["counts"] == strings[i]
        for counts in (strings[i], case.params["counts"][i]):
            rle = {"size": case.params["size"], "counts": counts}
            assert rle_runs(rle).tolist() == case.params["counts"][i]
            assert np.array_equal(decode_rle(rle).astype(bool), mask)
        assert rle_runs(encoded[i])[1::2].sum() == case["area"][i]


def check_point_sample(case: Case) -> None:
    maps = case.tensor("x").requires_grad_()
    out = point_sample(maps, case.tensor("coords"), case.params["align_corners"])
    case.check("out", out)
    if "dx" in case:
        (grad,) = torch.autograd.grad(out, maps, case.tensor("grad_out"))
        case.check("dx", grad)


def check_psroi(case: Case) -> None:
    p = case.params
    maps = case.tensor("x").requires_grad_()
    args = (maps, case.tensor("rois"), p["output_size"], p["spatial_scale"])
    if "group_size" in p:
        out = ps_roi_pool(*args, group_size=p["group_size"], rounding="pixels")
    elif "ratio" in p:
        out = ps_roi_align(*args, sampling_ratio=p["ratio"])
    else:
        out = ps_roi_pool(*args, rounding="cells")
    case.check("out", out)
    (grad,) = torch.autograd.grad(out, maps, case.tensor("grad_out"))
    case.check("dx", grad)


CHECKS: dict[str, Callable[[Case], None]] = {
    "anchors": check_anchors,
    "box_iou": check_box_iou,
    "deform_conv": check_deform_conv,
    "nms": check_nms,
    "paste_masks": check_paste_masks,
    "point_sample": check_point_sample,
    "psroi": check_psroi,
    "rle": check_rle,
    "roi_align": check_roi_align,
    "rotated": check_rotated,
}


def dtypes_of(tolerance: dict[str, float] | str) -> list[torch.dtype]:
    """The precisions that a case has a tolerance for; both where it is exact."""
    both = {"f32": torch.float32, "f64": torch.float64}
    stated = {key[-3:] for key in tolerance} & both.keys() if isinstance(tolerance, dict) else set()
    return [both[key] for key in sorted(stated or both)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cases = []
    for path in sorted((PARITY_DIR / "ops").glob("*.json")):
        for name, described in load(path.stem)[0]["cases"].items():
            for dtype in dtypes_of(described["tol"]):
                test_id = f"{path.stem}/{name}-{str(dtype).removeprefix('torch.')}"
                cases.append(pytest.param(path.stem, name, dtype, id=test_id))
    missing = pytest.mark.skip(f"no op cases in {PARITY_DIR}")
    none = [pytest.param("", "", None, marks=missing)]
    metafunc.parametrize("fixture, name, dtype", cases or none)


def test_op(fixture: str, name: str, dtype: torch.dtype) -> None:
    case = Case(fixture, name, dtype)
    op = max((op for op in CHECKS if fixture.startswith(f"ops_{op}")), key=len, default=None)
    if op is None:
        case.skip(fixture.removeprefix("ops_"))
    CHECKS[op](case)
