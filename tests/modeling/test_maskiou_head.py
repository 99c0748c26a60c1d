import itertools

import numpy as np
import pytest
import shapely
import torch

from segdet.errors import ConfigError
from segdet.layers import c2_msra_fill
from segdet.modeling.mask_head import mask_loss
from segdet.modeling.maskiou_head import (
    MaskIoUHeadConfig,
    attach_mask_scores,
    canvas_shares,
    maskiou_loss,
    maskiou_targets,
    outline_shares,
    shares_inside,
)
from segdet.structures import (
    BitMasks,
    Boxes,
    Detections,
    PolygonMasks,
    Proposals,
    Targets,
)


def test_names_and_shapes():
    head = MaskIoUHeadConfig(num_conv=2, conv_dim=8).build(4, num_classes=3, side=14)
    assert {n: list(p.shape) for n, p in head.named_parameters()} == {
        "maskiou_fcn1.weight": [8, 5, 3, 3],
        "maskiou_fcn1.bias": [8],
        "maskiou_fcn2.weight": [8, 8, 3, 3],
        "maskiou_fcn2.bias": [8],
        "maskiou_fc1.weight": [1024, 8 * 7 * 7],
        "maskiou_fc1.bias": [1024],
        "maskiou_fc2.weight": [1024, 1024],
        "maskiou_fc2.bias": [1024],
        "maskiou.weight": [3, 1024],
        "maskiou.bias": [3],
    }
    for regions in (5, 0):
        assert head(torch.rand(regions, 4, 14, 14), torch.rand(regions, 28, 28)).shape == (
            regions,
            3,
        )


def test_an_odd_side_fits():
    head = MaskIoUHeadConfig(num_conv=1, conv_dim=2).build(4, num_classes=3, side=7)
    assert head(torch.rand(2, 4, 7, 7), torch.rand(2, 14, 14)).shape == (2, 3)


def test_it_has_as_many_parameters_as_the_original():
    head = MaskIoUHeadConfig().build(256, num_classes=81, side=14)
    assert sum(p.numel() for p in head.parameters()) == 16_341_329


def test_hidden_layers_start_as_asked():
    torch.manual_seed(0)
    spread = [
        MaskIoUHeadConfig(num_conv=1, conv_dim=4)
        .build(4, num_classes=3, side=14, **given)
        .maskiou_fc1.weight.std()
        for given in ({}, {"fill": c2_msra_fill})
    ]
    assert [one.item() for one in spread] == pytest.approx(
        [(1 / (4 * 49)) ** 0.5, (2 / 1024) ** 0.5], rel=0.02
    )


def test_bad_settings_name_the_key():
    with pytest.raises(ConfigError, match="NAME 'Nope' is unknown; known: MaskIoUHead"):
        MaskIoUHeadConfig(name="Nope")


def test_loss_golden():
    """Regions that miss their object count neither in the sum nor in the mean."""
    ious = torch.tensor([[9.0, 0.2], [0.9, 9.0], [0.4, 9.0]], requires_grad=True)
    loss = maskiou_loss(ious, torch.tensor([0.6, 0, 0.7]), torch.tensor([1, 0, 0]))["loss_maskiou"]
    assert loss.item() == pytest.approx(0.0625)
    loss.backward()
    expected = torch.tensor([[0, -0.2], [0, 0], [-0.15, 0]])
    torch.testing.assert_close(ious.grad, expected)
    twice = maskiou_loss(ious, torch.tensor([0.6, 0, 0.7]), torch.tensor([1, 0, 0]), weight=2)
    assert twice["loss_maskiou"].item() == pytest.approx(0.125)


@pytest.mark.parametrize("regions", [0, 2])
def test_loss_without_a_positive_target_is_zero_and_connected(regions):
    ious = torch.rand(regions, 3, requires_grad=True)
    classes = torch.zeros(regions, dtype=torch.int64)
    loss = maskiou_loss(ious, torch.zeros(regions), classes)["loss_maskiou"]
    loss.backward()
    assert loss.item() == 0 and ious.grad is not None and not ious.grad.any()


def rectangle(x0: float, y0: float, x1: float, y1: float) -> list[float]:
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def share_of(mask, *boxes, size=(100, 100), polygon_shares=canvas_shares) -> list[float]:
    """How much of one object lies in each box."""
    proposals = Proposals(size, proposal_boxes=Boxes(torch.tensor(boxes)))
    proposals.gt_index = torch.zeros(len(boxes), dtype=torch.int64)
    masks = mask if isinstance(mask, BitMasks) else PolygonMasks([mask])
    targets = Targets(size, gt_masks=masks)
    return shares_inside([proposals], [targets], polygon_shares).tolist()


@pytest.mark.parametrize("polygon_shares", [canvas_shares, outline_shares])
def test_targets_count_what_lies_off_the_region(polygon_shares):
    """CenterMask2's golden values: the object goes on beyond the region, or fills half of it."""
    boxes = torch.tensor([[20.0, 20, 48, 48], [10, 10, 38, 38]])
    objects = [rectangle(20, 20, 60, 48)], [rectangle(10, 10, 24, 38)]
    shares = torch.tensor(
        [
            share_of(o, b.tolist(), polygon_shares=polygon_shares)[0]
            for o, b in zip(objects, boxes, strict=True)
        ]
    )
    assert shares.tolist() == pytest.approx([0.7, 1])
    logits = torch.full((2, 28, 28), -5.0)
    logits[0, :, :14] = logits[1, :, :21] = 5
    gt_masks = PolygonMasks(list(objects)).crop_and_resize(boxes, 28)
    targets = maskiou_targets(logits, gt_masks, shares)
    assert targets.tolist() == pytest.approx([0.35, 2 / 3])
    loss = mask_loss(logits[:, None].expand(-1, 2, -1, -1), gt_masks, torch.tensor([0, 1]))
    assert loss["loss_mask"].item() == pytest.approx(1.8817154)


@pytest.mark.parametrize("is_bitmask", [False, True])
def test_targets_are_the_ious_of_pixels(is_bitmask):
    """Cells of whole pixels: the IoU counted in the image, object and prediction as pixels."""
    rng = np.random.default_rng(0)
    size, side, cell, wrong = (96, 128), 7, 4, []
    for _ in range(200):
        x, y = rng.integers(0, [128 - side * cell, 96 - side * cell])
        x0, y0 = (int(v) for v in [x, y] + cell * rng.integers(-5, side, 2))
        x1, y1 = (int(v) for v in [x0, y0] + cell * rng.integers(1, 9, 2))
        x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, 127), min(y1, 95)
        if x1 <= x or y1 <= y or x1 <= x0 or y1 <= y0 or (x1 - x) % cell or (y1 - y) % cell:
            continue  # cut at the image's border into parts of cells
        if (x0 - x) % cell or (y0 - y) % cell:
            continue
        pixels = np.zeros(size, bool)
        pixels[y0:y1, x0:x1] = True
        logits = torch.from_numpy(rng.normal(size=(side, side)))
        found = np.zeros(size, bool)
        painted = np.kron(logits.numpy() > 0, np.ones((cell, cell), bool))
        found[y : y + side * cell, x : x + side * cell] = painted
        expected = (found & pixels).sum() / (found | pixels).sum()
        mask = BitMasks(pixels[None]) if is_bitmask else [rectangle(x0, y0, x1, y1)]
        box = torch.tensor([[x, y, x + side * cell, y + side * cell]]).float()
        masks = mask if is_bitmask else PolygonMasks([mask])
        target = maskiou_targets(
            logits[None],
            masks.crop_and_resize(box, side),
            torch.tensor(share_of(mask, box[0].tolist(), size=size)),
        )
        wrong.append(abs(target.item() - expected))
    assert len(wrong) > 50 and max(wrong) < 1e-6


def test_the_two_ways_to_count_polygons():
    """A canvas loses a row of an outline on pixel borders; the share of an outline ends at 1."""
    size, box = (100, 100), [9.0, 9, 21, 21]
    speck = [rectangle(10, 10, 10.4, 10.4)]
    assert share_of(speck, box, size=size, polygon_shares=outline_shares) == [0.0]
    wide = [[10.0, 10, 20.6, 10, 20.6, 20.6, 10, 20.6]]
    assert share_of(wide, box, size=size, polygon_shares=outline_shares) == [1.0]
    half = [rectangle(10, 10, 20, 20)] * 2  # parts that overlap count twice, inside and out
    boxes = [10.0, 10, 20, 15], [10.0, 10, 20, 20]
    assert share_of(half, *boxes, polygon_shares=outline_shares) == pytest.approx([0.5, 1.0])


def star(rng: np.random.Generator) -> np.ndarray:
    """(12, 2) corners within 160 x 120 pixels."""
    angles, radii = np.sort(rng.uniform(0, 2 * np.pi, 12)), rng.uniform(10, 30, 12)
    directions = np.stack([np.cos(angles), np.sin(angles)], 1)
    return rng.uniform([30, 30], [130, 90]) + radii[:, None] * directions


def test_targets_of_polygons_and_of_pixels_are_those_of_the_areas():
    """Regions of 16 pixels and more; the official canvas of polygons may lose a row."""
    rng, size, gaps, shares = np.random.default_rng(0), (120, 160), [], []
    for _ in range(150):
        points = star(rng)
        box = np.concatenate([points.min(0), points.max(0)]) + rng.normal(0, 8, 4)
        box = box.clip(0, [160, 120, 160, 120])
        if (box[2:] - box[:2]).min() < 16:
            continue
        polygon, boxes = points.reshape(-1).tolist(), torch.tensor(box[None]).float()
        shape, region = shapely.Polygon(points), shapely.box(*box)
        shares.append(shape.intersection(region).area / shape.area)
        pixels = BitMasks.from_polygon_masks(PolygonMasks([[polygon]]), *size)
        gt_masks = PolygonMasks([[polygon]]).crop_and_resize(boxes, 28)
        noise = torch.from_numpy(rng.normal(1, 1, (1, 28, 28)))
        logits = torch.where(gt_masks, noise, -noise)
        target, *ours = (
            maskiou_targets(logits, gt_masks, torch.tensor(share)).item()
            for share in (
                shares[-1:],
                share_of([polygon], box.tolist(), size=size),
                share_of(pixels, box.tolist(), size=size),
            )
        )
        gaps.append([abs(one - target) for one in ours])
    of_polygon, of_pixels = np.max(gaps, axis=0)
    assert len(gaps) > 100 and min(shares) < 0.7
    assert of_polygon < 0.03 and of_pixels < 0.01


def test_shares_of_pixels_are_exact():
    pixels = np.zeros((1, 100, 100), bool)
    pixels[0, 10:30, 20:40] = True
    boxes = [20.0, 10, 40, 30], [20.0, 10, 30, 20], [25.5, 10, 26.0, 30], [50.0, 50, 60, 60]
    assert share_of(BitMasks(pixels), *boxes) == pytest.approx([1, 0.25, 0.025, 0])


def test_parts_that_overlap_count_twice():
    parts = [rectangle(10, 10, 20, 20), rectangle(10, 10, 20, 20), rectangle(30, 10, 40, 20)]
    assert share_of(parts, [10.0, 10, 20, 20]) == pytest.approx([2 / 3])


def test_objects_of_a_pixel_of_none_and_regions_of_none_give_numbers():
    dot, nothing = [rectangle(10, 10, 11, 11)], []
    boxes = [10.0, 10, 11, 11], [10.2, 10.2, 10.9, 10.9], [5.0, 5, 5, 5], [0.0, 0, 100, 100]
    empty = BitMasks(np.zeros((1, 100, 100), bool))
    ways = itertools.product((dot, nothing, empty), (canvas_shares, outline_shares))
    for mask, polygon_shares in ways:
        shares = torch.tensor(share_of(mask, *boxes, polygon_shares=polygon_shares))
        masks = mask if isinstance(mask, BitMasks) else PolygonMasks([mask])
        gt_masks = masks[[0, 0, 0, 0]].crop_and_resize(torch.tensor(boxes), 28)
        for sign in (1.0, -1.0):
            targets = maskiou_targets(torch.full((4, 28, 28), sign), gt_masks, shares)
            assert ((targets >= 0) & (targets <= 1)).all()
    no_boxes = Proposals((9, 9), proposal_boxes=Boxes(torch.zeros(0, 4)))
    assert shares_inside([no_boxes], [Targets((9, 9), gt_masks=PolygonMasks([]))]).shape == (0,)


def test_mask_scores_are_scores_times_the_iou_of_the_class():
    found = [
        Detections((9, 9), scores=torch.tensor(s), pred_classes=torch.tensor(c).long())
        for s, c in [([0.9, 0.5], [1, 0]), ([], []), ([0.4], [2])]
    ]
    ious = torch.tensor([[0, 0.5, 0], [-0.2, 0, 0], [0, 0, 1.5]])
    attach_mask_scores(ious, found)
    scores = [one.mask_scores.tolist() for one in found]
    assert [pytest.approx(one) for one in scores] == [[0.45, -0.1], [], [0.6]]
    assert found[0].scores.tolist() == pytest.approx([0.9, 0.5])
