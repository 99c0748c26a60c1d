import math

import pytest
import shapely
import torch
from torch import Tensor

from segdet.ops import box_iou_rotated
from tests.ops.threads import check_same_bits


def corners_of(box: list[float]) -> list[tuple[float, float]]:
    """Of (x, y, w, h, degrees), counter-clockwise on a screen whose y points down."""
    x, y, w, h, degrees = box
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    around = [(-w, -h), (w, -h), (w, h), (-w, h)]
    return [(x + (u * cos + v * sin) / 2, y + (v * cos - u * sin) / 2) for u, v in around]


def iou_by_definition(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    a, b = (
        [shapely.Polygon(corners_of(box)) for box in boxes.double().tolist()]
        for boxes in (boxes1, boxes2)
    )
    ious = [[p.intersection(q).area / p.union(q).area for q in b] for p in a]
    return torch.tensor(ious, dtype=torch.float64).reshape(len(a), len(b))


def tilted_boxes(n: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
    """Boxes that often meet, at any number of turns."""
    scale = torch.tensor([40.0, 40, 20, 20, 2000])
    boxes = torch.rand(n, 5) * scale + torch.tensor([0.0, 0, 2, 2, -1000])
    return boxes.to(device, dtype)


def box(*numbers: float, device: str) -> Tensor:
    return torch.tensor([numbers], device=device, dtype=torch.float32)


@pytest.mark.parametrize("n, m", [(1, 1), (17, 40), (0, 3), (3, 0)])
def test_matches_definition(implementation, device, n, m):
    a, b = tilted_boxes(n, device), tilted_boxes(m, device)
    ious = box_iou_rotated(a, b)
    assert ious.dtype == torch.float32
    torch.testing.assert_close(ious.double(), iou_by_definition(a, b), rtol=0, atol=1e-6)


def test_identical_boxes(implementation, device):
    boxes = tilted_boxes(50, device)
    turned = boxes + torch.tensor([0.0, 0, 0, 0, 360], device=device)
    assert (box_iou_rotated(boxes, boxes).diagonal() == 1).all()
    torch.testing.assert_close(
        box_iou_rotated(boxes, turned).diagonal(), torch.ones(50, device=device)
    )


@pytest.mark.parametrize("angle", [0.0, 30.0, 90.0, -45.0, 720.5])
def test_touching_halved_and_contained_boxes(implementation, device, angle):
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    one = box(100, 50, 20, 10, angle, device=device)
    beside = box(100 + 20 * cos, 50 - 20 * sin, 20, 10, angle, device=device)
    half = box(100, 50, 10, 10, angle, device=device)
    inside = box(101, 51, 2, 2, angle + 17, device=device)
    assert box_iou_rotated(one, beside).item() == pytest.approx(0, abs=1e-6)
    assert box_iou_rotated(one, half).item() == pytest.approx(0.5)
    assert box_iou_rotated(one, inside).item() == pytest.approx(4 / 200)


def test_the_angle_turns_counter_clockwise_on_the_screen(implementation, device):
    rod = box(0, 0, 20, 2, 45, device=device)
    up_right = box(5, -5, 2, 2, 0, device=device)
    down_right = box(5, 5, 2, 2, 0, device=device)
    assert box_iou_rotated(rod, up_right) > 0
    assert box_iou_rotated(rod, down_right) == 0


def test_small_boxes_far_away_keep_their_digits(implementation, device):
    a = box(1e6, 1e6, 2, 2, 30, device=device)
    b = torch.tensor([[1e6, 1e6, 2, 1, 30]], device=device)
    huge = box(1e6, 1e6, 2e5, 2e5, 77, device=device)
    assert box_iou_rotated(a, b).item() == pytest.approx(0.5, abs=1e-6)
    assert box_iou_rotated(a, huge).item() == pytest.approx(4 / 4e10, rel=1e-5)


@pytest.mark.parametrize(
    "bad",
    [
        (0, 0, 0, 10, 0),
        (0, 0, 1e-8, 1e-7, 0),
        (0, 0, -4, 5, 0),
        (math.nan, 0, 4, 5, 0),
        (0, 0, math.inf, 5, 0),
        (0, 0, 4, 5, math.inf),
        (math.inf, 0, 4, 5, 0),
    ],
)
def test_what_has_no_area_or_is_not_finite_overlaps_nothing(implementation, device, bad):
    boxes = torch.cat([box(*bad, device=device), box(0, 0, 4, 5, 0, device=device)])
    expected = torch.tensor([[0.0, 0], [0, 1]], device=device)
    torch.testing.assert_close(box_iou_rotated(boxes, boxes), expected)


def test_needles_stay_between_zero_and_one(implementation, device):
    boxes = tilted_boxes(60, device, torch.float64)
    boxes[:, 3] = 1e-9
    boxes[1:, :2] = boxes[0, :2]
    boxes[1:, 4] = boxes[0, 4] + torch.linspace(-1e-9, 1e-9, 59, device=device)
    ious = box_iou_rotated(boxes, boxes)
    assert ((ious >= 0) & (ious <= 1)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types(implementation, device, dtype):
    a, b = tilted_boxes(9, device, dtype), tilted_boxes(7, device, dtype)
    ious = box_iou_rotated(a, b)
    assert ious.dtype == dtype
    tolerance = 1e-12 if dtype == torch.float64 else 4e-3
    torch.testing.assert_close(ious.double(), iou_by_definition(a, b), rtol=0, atol=tolerance)


def test_strided_boxes(implementation, device):
    a, b = tilted_boxes(12, device), tilted_boxes(5, device)
    strided = a.T.contiguous().T[::2]
    assert torch.equal(box_iou_rotated(strided, b), box_iou_rotated(a[::2].clone(), b))


def test_any_number_of_threads_gives_the_same_bits(compiled):
    a, b = tilted_boxes(200, compiled), tilted_boxes(300, compiled)
    check_same_bits(lambda: box_iou_rotated(a, b))


def test_no_gradient_is_promised(implementation, device):
    boxes = tilted_boxes(3, device).requires_grad_()
    assert not box_iou_rotated(boxes, boxes).requires_grad


def test_rejects_wrong_shapes_and_types(implementation, device):
    good = tilted_boxes(3, device)
    with pytest.raises(RuntimeError, match=r"boxes2 must be \(N, 5\), has"):
        box_iou_rotated(good, good[:, :4])
    with pytest.raises(RuntimeError, match="boxes2 must be of boxes1's type"):
        box_iou_rotated(good, good.double())


def test_is_a_well_formed_op(compiled):
    args = (tilted_boxes(4, compiled), tilted_boxes(3, compiled))
    torch.library.opcheck(torch.ops.segdet.box_iou_rotated, args)


def test_compiles_and_exports(compiled):
    class Overlaps(torch.nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return box_iou_rotated(a, b).amax(1)

    args = (tilted_boxes(4, compiled), tilted_boxes(3, compiled))
    expected = Overlaps()(*args)
    whole = torch.compile(Overlaps(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(whole(*args), expected)
    torch.testing.assert_close(torch.export.export(Overlaps(), args).module()(*args), expected)
