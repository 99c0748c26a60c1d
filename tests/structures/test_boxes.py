import copy
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from segdet.structures import (
    Boxes,
    BoxMode,
    matched_pairwise_iou,
    pairwise_intersection,
    pairwise_ioa,
    pairwise_iou,
    pairwise_point_box_distance,
)
from segdet.structures.boxes import box_area, box_iou, clip_boxes

XYXY, XYWH, XYWHA = BoxMode.XYXY_ABS, BoxMode.XYWH_ABS, BoxMode.XYWHA_ABS


def random_boxes(n: int, dtype: torch.dtype = torch.float32) -> Tensor:
    corner = torch.rand(n, 2, dtype=dtype) * 80
    return torch.cat([corner, corner + torch.rand(n, 2, dtype=dtype) * 40], 1)


def iou_by_definition(a: list[float], b: list[float]) -> float:
    w = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    h = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h
    return w * h / union if w * h > 0 else 0.0


class TestBoxMode:
    def test_values_are_those_of_stored_records(self):
        assert [mode.value for mode in BoxMode] == [0, 1, 2, 3, 4]

    @pytest.mark.parametrize(
        "box, source, target, expected",
        [
            ([10, 20, 30, 60], XYXY, XYWH, [10, 20, 20, 40]),
            ([10, 20, 20, 40], XYWH, XYXY, [10, 20, 30, 60]),
            ([10, 20, 20, 40], XYWH, XYWHA, [20, 40, 20, 40, 0]),
            ([50, 50, 30, 20, 0], XYWHA, XYXY, [35, 40, 65, 60]),
            ([50, 50, 30, 20, 90], XYWHA, XYXY, [40, 35, 60, 65]),
            ([50, 50, 30, 20, -90], XYWHA, XYXY, [40, 35, 60, 65]),
            ([0, 0, 2, 2, 45], XYWHA, XYXY, [-math.sqrt(2)] * 2 + [math.sqrt(2)] * 2),
        ],
    )
    def test_converts_every_kind_of_box(self, box, source, target, expected):
        close = {"rtol": 1e-6, "atol": 1e-5}
        as_list = BoxMode.convert([float(v) for v in box], source, target)
        assert type(as_list) is list
        np.testing.assert_allclose(as_list, expected, **close)
        as_tuple = BoxMode.convert(tuple(box), source, target)
        assert type(as_tuple) is tuple
        np.testing.assert_allclose(as_tuple, expected, **close)
        for dtype in (np.float32, np.float64):
            as_array = BoxMode.convert(np.array([box, box], dtype), source, target)
            assert isinstance(as_array, np.ndarray) and as_array.dtype == dtype
            np.testing.assert_allclose(as_array, [expected, expected], **close)
        for dtype in (torch.float32, torch.float64):
            as_tensor = BoxMode.convert(torch.tensor([box, box], dtype=dtype), source, target)
            wanted = torch.tensor([expected, expected], dtype=dtype)
            torch.testing.assert_close(as_tensor, wanted, **close)

    def test_integers_become_floats(self):
        assert BoxMode.convert(torch.tensor([[1, 2, 3, 4]]), XYWH, XYXY).dtype == torch.float32
        assert BoxMode.convert(np.array([1, 2, 3, 4]), XYWH, XYXY).dtype == np.float64

    def test_leaves_its_argument_alone(self):
        box = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
        BoxMode.convert(box, XYWH, XYXY)
        assert box.tolist() == [[1, 2, 3, 4]]

    def test_no_boxes(self):
        assert BoxMode.convert(torch.empty(0, 4), XYWH, XYXY).shape == (0, 4)
        assert BoxMode.convert(torch.empty(0, 5), XYWHA, XYXY).shape == (0, 4)

    def test_modes_may_be_plain_integers(self):
        assert BoxMode.convert([1, 2, 3, 4], 1, 0) == [1, 2, 4, 6]

    @pytest.mark.parametrize("source, target", [(XYXY, BoxMode.XYXY_REL), (BoxMode.XYWH_REL, XYXY)])
    def test_refuses_relative_boxes(self, source, target):
        with pytest.raises(NotImplementedError, match="give absolute pixels"):
            BoxMode.convert([0.1, 0.1, 0.2, 0.2], source, target)

    def test_refuses_a_wrong_length(self):
        with pytest.raises(ValueError, match="a XYWHA_ABS box has 5 numbers"):
            BoxMode.convert([1.0, 2.0, 3.0, 4.0], XYWHA, XYXY)


class TestPairs:
    @pytest.mark.parametrize("n, m", [(1, 1), (17, 5), (0, 3), (3, 0)])
    def test_iou_matches_definition(self, n, m):
        a, b = random_boxes(n), random_boxes(m)
        expected = [[iou_by_definition(p, q) for q in b.tolist()] for p in a.tolist()]
        torch.testing.assert_close(box_iou(a, b), torch.tensor(expected).reshape(n, m))

    @settings(max_examples=25, deadline=None)
    @given(st.lists(st.lists(st.integers(0, 6), min_size=4, max_size=4), min_size=1, max_size=6))
    def test_iou_of_small_integer_boxes(self, corners):
        boxes = torch.tensor(corners, dtype=torch.float64).sort(-1).values[:, [0, 1, 2, 3]]
        iou = box_iou(boxes, boxes)
        assert ((iou >= 0) & (iou <= 1)).all()
        assert torch.equal(iou, iou.T)
        assert torch.equal(iou.diagonal() == 1, box_area(boxes) > 0)

    def test_golden(self, op_case):
        meta, cases = op_case("ops_box_iou")
        for name, arrays in cases.items():
            tol = meta["cases"][name]["tol"]
            for dtype, atol in ((torch.float32, tol["f32"]), (torch.float64, tol["f64"])):
                a, b = (torch.from_numpy(arrays[k]).to(dtype) for k in "ab")
                golden = torch.from_numpy(np.nan_to_num(arrays["iou"])).to(dtype)
                torch.testing.assert_close(box_iou(a, b), golden, rtol=0, atol=atol)

    def test_boxes_without_area_overlap_nothing(self):
        point = torch.tensor([[5.0, 5.0, 5.0, 5.0]])
        assert box_iou(point, point).item() == 0
        assert pairwise_ioa(Boxes(point), Boxes(point)).item() == 0
        assert matched_pairwise_iou(Boxes(point), Boxes(point)).item() == 0

    def test_pairs_of_boxes(self):
        a, b = Boxes([[0, 0, 2, 2], [5, 5, 6, 6]]), Boxes([[1, 0, 5, 2]])
        torch.testing.assert_close(pairwise_intersection(a, b), torch.tensor([[2.0], [0.0]]))
        torch.testing.assert_close(pairwise_iou(a, b), torch.tensor([[2 / 10], [0.0]]))
        torch.testing.assert_close(pairwise_ioa(a, b), torch.tensor([[2 / 8], [0.0]]))

    def test_matched_iou_is_the_diagonal(self):
        a, b = Boxes(random_boxes(9)), Boxes(random_boxes(9))
        torch.testing.assert_close(matched_pairwise_iou(a, b), pairwise_iou(a, b).diagonal())

    def test_matched_iou_needs_equal_lengths(self):
        with pytest.raises(ValueError, match="equally many, are 2, 3"):
            matched_pairwise_iou(Boxes(random_boxes(2)), Boxes(random_boxes(3)))

    def test_distances_of_points_to_sides(self):
        distances = pairwise_point_box_distance(torch.tensor([[3.0, 4.0]]), Boxes([[1, 1, 8, 10]]))
        assert distances.tolist() == [[[2, 3, 5, 6]]]

    def test_iou_has_gradients(self):
        a = random_boxes(3, torch.float64).requires_grad_()
        b = random_boxes(3, torch.float64)
        assert torch.autograd.gradcheck(lambda x: box_iou(x, b), a)


class TestBoxes:
    def test_takes_lists_arrays_and_tensors(self):
        for given_boxes in (
            [[1, 2, 3, 4]],
            np.array([[1.0, 2, 3, 4]]),
            torch.tensor([[1, 2, 3, 4]]),
        ):
            boxes = Boxes(given_boxes)
            assert boxes.tensor.dtype == torch.float32 and boxes.tensor.tolist() == [[1, 2, 3, 4]]

    def test_keeps_double_precision_of_tensors(self):
        boxes = Boxes(torch.zeros(2, 4, dtype=torch.float64))
        boxes.clip((4, 4))
        boxes.scale(0.5, 2)
        assert Boxes.cat([boxes[:1], boxes[1]]).tensor.dtype == torch.float64
        assert Boxes(torch.zeros(2, 4, dtype=torch.float16)).tensor.dtype == torch.float32

    @pytest.mark.parametrize("nothing", [[], np.zeros((0, 4)), torch.zeros(0), torch.zeros(0, 4)])
    def test_no_boxes(self, nothing):
        boxes = Boxes(nothing)
        assert boxes.tensor.shape == (0, 4) and len(boxes) == 0
        boxes.clip((10, 10))
        boxes.scale(2, 2)
        assert boxes.nonempty().shape == boxes.area().shape == (0,)
        assert Boxes.cat([]).tensor.shape == Boxes.cat([boxes, boxes]).tensor.shape == (0, 4)
        assert list(boxes) == []

    @pytest.mark.parametrize("shape", [(4,), (2, 5), (1, 2, 4)])
    def test_refuses_other_shapes(self, shape):
        with pytest.raises(ValueError, match=r"Boxes takes an \(N, 4\) tensor"):
            Boxes(torch.zeros(shape))

    def test_area_and_centres(self):
        boxes = Boxes([[0, 0, 2, 3], [1, 1, 1, 5]])
        assert boxes.area().tolist() == [6, 0]
        assert boxes.get_centers().tolist() == [[1, 1.5], [1, 3]]

    def test_clip_is_to_the_image_border_not_the_last_pixel(self):
        boxes = Boxes([[-5.5, -1, 700, 500], [10, 20, 30, 40]])
        boxes.clip((480, 640))
        assert boxes.tensor.tolist() == [[0, 0, 640, 480], [10, 20, 30, 40]]

    def test_clip_functions_agree_and_pass_gradients(self):
        raw = torch.tensor([[-1.0, 2.0, 9.0, 5.0]], requires_grad=True)
        clip_boxes(raw, (6, 8)).sum().backward()
        assert raw.grad is not None and raw.grad.tolist() == [[0, 1, 0, 1]]

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_clip_refuses_what_is_not_finite(self, bad):
        with pytest.raises(ValueError, match="infinite or NaN"):
            Boxes([[0, 0, 1, bad]]).clip((5, 5))

    def test_nonempty_is_strict_on_both_sides(self):
        boxes = Boxes([[0, 0, 2, 2], [0, 0, 0, 2], [0, 0, 3, 2], [3, 3, 1, 1]])
        assert boxes.nonempty().tolist() == [True, False, True, False]
        assert boxes.nonempty(threshold=2).tolist() == [False, False, False, False]

    def test_inside_box(self):
        boxes = Boxes([[0, 0, 9, 9], [-1, 0, 5, 5], [0, 0, 10, 5], [-3, 0, 5, 5]])
        assert boxes.inside_box((10, 10)).tolist() == [True, False, False, False]
        assert boxes.inside_box((10, 10), 2).tolist() == [True, True, True, False]

    def test_scale_changes_x_and_y(self):
        raw = torch.tensor([[1.0, 2, 3, 4]])
        boxes = Boxes(raw)
        boxes.scale(2, 10)
        assert boxes.tensor.tolist() == [[2, 20, 6, 40]]

    def test_indexing(self):
        boxes = Boxes(random_boxes(5))
        assert torch.equal(boxes[1].tensor, boxes.tensor[1:2])
        assert torch.equal(boxes[-1].tensor, boxes.tensor[4:])
        assert torch.equal(boxes[1:3].tensor, boxes.tensor[1:3])
        assert torch.equal(boxes[[0, 4]].tensor, boxes.tensor[[0, 4]])
        assert torch.equal(boxes[boxes.area() > 1e9].tensor, torch.empty(0, 4))
        assert torch.equal(boxes[torch.tensor([3, 3])].tensor, boxes.tensor[[3, 3]])
        with pytest.raises(IndexError):
            boxes[5]
        with pytest.raises(IndexError, match="gives shape"):
            boxes[torch.zeros(5, 4, dtype=torch.bool)]

    def test_iterates_over_rows(self):
        assert [row.tolist() for row in Boxes([[0, 1, 2, 3], [4, 5, 6, 7]])] == [
            [0, 1, 2, 3],
            [4, 5, 6, 7],
        ]

    def test_clone_shares_nothing(self):
        boxes = Boxes(random_boxes(2))
        boxes.clone().tensor.zero_()
        assert boxes.tensor.any()

    def test_moves(self, device):
        boxes = Boxes(random_boxes(2)).to(device)
        assert boxes.device.type == boxes.tensor.device.type == device

    def test_pickles_copies_and_prints(self):
        boxes = Boxes([[0, 1, 2, 3]])
        for same in (pickle.loads(pickle.dumps(boxes)), copy.deepcopy(boxes)):
            assert torch.equal(same.tensor, boxes.tensor)
        assert repr(boxes) == "Boxes(tensor([[0., 1., 2., 3.]]))"
