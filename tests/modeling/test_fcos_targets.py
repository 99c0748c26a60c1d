import pytest
import torch

from segdet.modeling.fcos_targets import LocationMatcher, centerness, locations
from tests.modeling.test_fcos import SIZES, STRIDES, a_target, golden_targets

INF = float("inf")
RANGES = [(-1, 64), (64, 128), (128, 256), (256, 512), (512, INF)]


def match(targets, *, radius=1.5, sizes=SIZES, strides=STRIDES, ranges=RANGES):
    return LocationMatcher(strides, ranges, radius=radius)(sizes, targets)


def as_maps(positives, sizes, batch):
    """Per level, the object (B, H * W) of every location, -1 for none."""
    maps, rows = [], zip(positives.image, positives.cell, positives.gt_index, strict=True)
    rows = list(rows)
    start = 0
    for count, (height, width) in zip(positives.counts, sizes, strict=True):
        owner = torch.full((batch, height * width), -1)
        for image, cell, gt in rows[start : start + count]:
            assert owner[image, cell] == -1, "a location has one object"
            owner[image, cell] = gt
        start += count
        maps.append(owner)
    return maps


def by_definition(targets, radius, sizes, strides, ranges):
    """Every location against every object, one by one."""
    maps, first = [], 0
    for size in sizes:
        maps.append(torch.full((len(targets), size[0] * size[1]), -1))
    for image, target in enumerate(targets):
        boxes = target.gt_boxes.tensor
        for level, (size, stride) in enumerate(zip(sizes, strides, strict=True)):
            for cell, (x, y) in enumerate(locations(size, stride, boxes)):
                smallest = INF
                for i, (x0, y0, x1, y1) in enumerate(boxes):
                    farthest = max(x - x0, y - y0, x1 - x, y1 - y)
                    low, high = ranges[level]
                    cx, cy, reach = (x0 + x1) / 2, (y0 + y1) / 2, INF
                    if radius is not None:
                        reach = radius * stride
                    inside = max(x0, cx - reach) < x < min(x1, cx + reach)
                    inside = inside and max(y0, cy - reach) < y < min(y1, cy + reach)
                    area = (x1 - x0) * (y1 - y0)
                    if inside and low <= farthest <= high and area < smallest:
                        smallest = area
                        maps[level][image, cell] = first + i
        first += len(boxes)
    return maps


def test_golden_positives():
    found = match(golden_targets())
    assert found.counts == (17, 9, 12, 0, 0)
    per_image = [torch.bincount(i, minlength=2).tolist() for i in found.image.split(found.counts)]
    assert per_image == [[11, 6], [9, 0], [12, 0], [0, 0], [0, 0]]
    classes = [set(c.tolist()) for c in found.gt_classes.split(found.counts)]
    assert classes == [{1, 3, 7}, {5}, {2, 5}, set(), set()]
    sums = [c.sum().item() for c in centerness(found.ltrb).split(found.counts)]
    assert sums == pytest.approx([11.16471, 6.86957, 7.54839, 0, 0], abs=1e-5)


@pytest.mark.parametrize("radius", [1.5, 0.7, 3.0, None])
def test_matches_definition(radius):
    generator = torch.Generator().manual_seed(0)
    sizes, strides = [(10, 13), (5, 7), (3, 4)], (8, 16, 32)
    ranges = [(-1, 24), (24, 48), (48, INF)]
    targets = []
    for number in (9, 0, 14):
        corner = torch.rand(number, 2, generator=generator) * 100 - 12  # some leave the image
        sides = torch.rand(number, 2, generator=generator) * 70
        boxes = torch.cat((corner, corner + sides), dim=1).round()  # halves and whole strides
        targets.append(a_target(boxes.tolist(), [0] * number))
    found = match(targets, radius=radius, sizes=sizes, strides=strides, ranges=ranges)
    expected = by_definition(targets, radius, sizes, strides, ranges)
    assert sum(found.counts) > 20
    for ours, theirs in zip(as_maps(found, sizes, 3), expected, strict=True):
        assert torch.equal(ours, theirs)


def test_distances_are_in_strides_of_the_level():
    found = match([a_target([[40, 40, 200, 220]], [5])])
    points = torch.cat(
        [
            locations(size, stride, found.ltrb)[cell]
            for size, stride, cell in zip(
                SIZES, STRIDES, found.cell.split(found.counts), strict=True
            )
        ]
    )
    strides = torch.tensor(STRIDES).repeat_interleave(torch.tensor(found.counts))[:, None]
    box = torch.tensor([40.0, 40, 200, 220])
    expected = torch.cat((points - box[:2], box[2:] - points), dim=1) / strides
    torch.testing.assert_close(found.ltrb, expected)


def test_both_ends_of_a_range_count():
    # From (68, 68) of p3 and (72, 72) of p4, the farthest side of this box is 64 px away.
    box = [68 - 64.0, 60, 76, 76]
    p3 = match([a_target([box], [0])], radius=None).counts
    assert p3[0] > 0
    for low, high in ((64, 128), (-1, 64)):
        found = match([a_target([[4, 60, 76, 76]], [0])], ranges=[(low, high)] * 5, radius=None)
        on_p3 = found.cell[: found.counts[0]]
        assert 8 * 40 + 8 in on_p3.tolist()  # the location (68, 68), 64 px from the left side


def test_locations_lie_strictly_inside():
    # (20, 20) is a location of p3; the box and the region of centre sampling end on it.
    assert sum(match([a_target([[20, 12, 40, 28]], [0])]).counts) > 0
    on_p3 = match([a_target([[20, 12, 36, 28]], [0])], radius=None)
    assert 2 * 40 + 2 not in on_p3.cell[: on_p3.counts[0]].tolist()
    on_p3 = match([a_target([[0, 0, 64, 40]], [0])], radius=1.5)  # the region is (20..44, 8..32)
    rows = on_p3.cell[: on_p3.counts[0]]
    assert sorted(set((rows % 40).tolist())) == [3, 4]
    assert sorted(set((rows // 40).tolist())) == [1, 2, 3]


def test_the_smallest_object_gets_a_shared_location_and_of_equals_the_first():
    boxes = [[40, 40, 100, 100], [50, 50, 90, 90], [50, 50, 90, 90]]
    found = match([a_target(boxes, [0, 1, 2])])
    assert 1 in found.gt_classes.tolist() and 2 not in found.gt_classes.tolist()


def test_boxes_centred_at_the_left_border_are_matched():
    # The reference takes them for no boxes: their centres' x sums to 0.
    found = match([a_target([[-30, 30, 30, 60], [-20, 100, 20, 140]], [0, 1])])
    assert set(found.gt_index.tolist()) == {0, 1}


@pytest.mark.parametrize("radius", [1.5, None])
def test_no_objects_are_no_positives(radius):
    found = match([a_target(), a_target()], radius=radius)
    assert found.counts == (0, 0, 0, 0, 0)
    assert found.ltrb.shape == (0, 4) and found.gt_classes.dtype == torch.int64
    assert found.gather([torch.zeros(2, 7, *size) for size in SIZES]).shape == (0, 7)


def test_objects_outside_the_maps_take_nothing():
    boxes = [[-90, -90, -10, -10], [500, 500, 560, 540], [400, 10, 480, 60], [5, 5, 5, 5]]
    assert sum(match([a_target(boxes, [0] * 4)]).counts) == 0


def test_gathers_the_cells_of_its_levels():
    found = match(golden_targets())
    maps = [
        1000 * level + torch.arange(2 * 3 * h * w).reshape(2, 3, h, w).float()
        for level, (h, w) in enumerate(SIZES)
    ]
    level = torch.arange(5).repeat_interleave(torch.tensor(found.counts))
    expected = torch.stack(
        [
            maps[k][i].flatten(1)[:, c]
            for k, i, c in zip(level.tolist(), found.image, found.cell, strict=True)
        ]
    )
    assert torch.equal(found.gather(maps), expected)
    own = found.gather_own_class([x.repeat(1, 3, 1, 1) for x in maps])
    assert torch.equal(own, expected[torch.arange(len(own)), found.gt_classes % 3])


def test_locations_are_the_middles_of_cells():
    like = torch.zeros(0)
    firsts = [locations((2, 3), stride, like)[0].tolist() for stride in STRIDES]
    assert firsts == [[4, 4], [8, 8], [16, 16], [32, 32], [64, 64]]
    assert locations((2, 3), 8, like)[4].tolist() == [12, 12]
