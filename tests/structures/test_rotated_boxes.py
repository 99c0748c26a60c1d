import math

import pytest
import torch

from segdet.structures import BoxMode, RotatedBoxes


def corners(box: list[float]) -> torch.Tensor:
    """(4, 2) corners by definition; counter-clockwise on a screen whose y points down."""
    x, y, w, h, angle = box
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    half = [(-w / 2, -h / 2), (w / 2, -h / 2), (w / 2, h / 2), (-w / 2, h / 2)]
    return torch.tensor([(x + c * u + s * v, y - s * u + c * v) for u, v in half])


@pytest.mark.parametrize("angle", [0, 30, 90, -135, 400])
def test_upright_hull(angle):
    box = [50.0, 40.0, 30.0, 10.0, float(angle)]
    points = corners(box)
    hull = torch.tensor(BoxMode.convert(box, BoxMode.XYWHA_ABS, BoxMode.XYXY_ABS))
    torch.testing.assert_close(hull, torch.cat([points.amin(0), points.amax(0)]))


@pytest.mark.parametrize("nothing", [[], torch.zeros(0), torch.zeros(0, 5)])
def test_no_boxes(nothing):
    boxes = RotatedBoxes(nothing)
    assert boxes.tensor.shape == (0, 5)
    boxes.clip((10, 10))
    boxes.scale(2, 3)
    assert RotatedBoxes.cat([]).tensor.shape == (0, 5)


def test_container(device):
    boxes = RotatedBoxes(torch.rand(4, 5)).to(device)
    assert boxes.device.type == device and len(boxes) == 4
    assert torch.equal(boxes[2].tensor, boxes.tensor[2:3])
    assert torch.equal(boxes[boxes.area() < 0].tensor, boxes.tensor[:0])
    assert torch.equal(RotatedBoxes.cat([boxes[:1], boxes[1:]]).tensor, boxes.tensor)
    assert torch.equal(torch.stack(list(boxes)), boxes.tensor)
    assert torch.equal(boxes.get_centers(), boxes.tensor[:, :2])
    assert torch.equal(boxes.clone().tensor, boxes.tensor)


def test_area_and_nonempty():
    boxes = RotatedBoxes([[5, 5, 4, 3, 30], [5, 5, 0, 3, 30]])
    assert boxes.area().tolist() == [12, 0]
    assert boxes.nonempty().tolist() == [True, False]
    assert boxes.nonempty(3).tolist() == [False, False]


def test_normalize_angles():
    boxes = RotatedBoxes([[0, 0, 1, 1, angle] for angle in (180, -180, 540, 90, -270)])
    boxes.normalize_angles()
    assert boxes.tensor[:, 4].tolist() == [-180, -180, -180, 90, 90]


def test_clip_leaves_slanted_boxes_alone():
    boxes = RotatedBoxes([[5, 5, 20, 4, 0], [5, 5, 20, 4, 360.5], [5, 5, 20, 4, 45]])
    before = boxes.tensor.clone()
    boxes.clip((10, 12))
    torch.testing.assert_close(boxes.tensor[0], torch.tensor([6.0, 5, 12, 4, 0]))
    torch.testing.assert_close(boxes.tensor[1], torch.tensor([6.0, 5, 12, 4, 0.5]))
    assert torch.equal(boxes.tensor[2], before[2])


def test_inside_box():
    boxes = RotatedBoxes([[5, 5, 8, 2, 0], [5, 5, 8, 2, 90], [5, 3, 8, 2, 90]])
    assert boxes.inside_box((10, 10)).tolist() == [True, True, False]
    assert boxes.inside_box((10, 10), 2).tolist() == [True, True, True]


def test_scale_of_upright_and_turned_boxes():
    boxes = RotatedBoxes([[1, 2, 4, 6, 0], [1, 2, 4, 6, 90]])
    boxes.scale(2, 5)
    expected = torch.tensor([[2.0, 10, 8, 30, 0], [2, 10, 20, 12, 90]])
    torch.testing.assert_close(boxes.tensor, expected)


def test_even_scale_keeps_the_angle():
    boxes = RotatedBoxes([[1, 2, 4, 6, 33]])
    boxes.scale(3, 3)
    torch.testing.assert_close(boxes.tensor, torch.tensor([[3.0, 6, 12, 18, 33]]))


def test_keeps_double_precision():
    assert RotatedBoxes(torch.zeros(1, 5, dtype=torch.float64)).tensor.dtype == torch.float64


def test_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"RotatedBoxes takes an \(N, 5\) tensor"):
        RotatedBoxes(torch.zeros(2, 4))
