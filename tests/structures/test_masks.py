import copy
import pickle

import numpy as np
import pytest
import torch

from segdet.structures import BitMasks, Boxes, PolygonMasks, ROIMasks

SQUARE = [2.0, 2, 8, 2, 8, 8, 2, 8]


def rows(mask: torch.Tensor) -> list[str]:
    return ["".join("#" if pixel else "." for pixel in row) for row in mask.tolist()]


class TestBitMasks:
    def test_takes_arrays_and_numbers(self):
        for given in (
            torch.tensor([[[0, 1]]]),
            np.array([[[0, 7]]], np.uint8),
            np.array([[[False, True]]]),
        ):
            masks = BitMasks(given)
            assert masks.tensor.dtype == torch.bool and masks.tensor.tolist() == [[[False, True]]]
            assert masks.image_size == (1, 2)

    def test_refuses_other_shapes(self):
        with pytest.raises(ValueError, match=r"BitMasks takes an \(N, H, W\) tensor, got \(3, 4\)"):
            BitMasks(torch.zeros(3, 4))

    def test_bounding_boxes_are_tight(self):
        masks = torch.zeros(4, 5, 7, dtype=torch.bool)
        masks[0, 1:3, 2:6] = True
        masks[1, 4, 6] = True
        masks[3] = True
        boxes = BitMasks(masks).get_bounding_boxes()
        assert isinstance(boxes, Boxes) and boxes.tensor.dtype == torch.float32
        assert boxes.tensor.tolist() == [[2, 1, 6, 3], [6, 4, 7, 5], [0, 0, 0, 0], [0, 0, 7, 5]]

    def test_no_masks(self):
        masks = BitMasks(torch.zeros(0, 5, 7))
        assert masks.get_bounding_boxes().tensor.shape == (0, 4)
        assert masks.nonempty().shape == masks.area().shape == (0,)
        assert len(masks) == 0 and list(masks) == []
        assert BitMasks.from_polygon_masks([], 5, 7).tensor.shape == (0, 5, 7)

    def test_area_and_nonempty(self):
        masks = torch.zeros(2, 3, 4)
        masks[1, 0, :3] = 1
        assert BitMasks(masks).area().tolist() == [0, 3]
        assert BitMasks(masks).nonempty().tolist() == [False, True]

    def test_indexing(self):
        masks = BitMasks(torch.rand(4, 3, 5) > 0.5)
        assert torch.equal(masks[1].tensor, masks.tensor[1:2])
        assert torch.equal(masks[1:3].tensor, masks.tensor[1:3])
        assert torch.equal(masks[[3, 0]].tensor, masks.tensor[[3, 0]])
        keep = torch.tensor([True, False, False, True])
        assert torch.equal(masks[keep].tensor, masks.tensor[keep])
        assert torch.equal(torch.stack(list(masks)), masks.tensor)
        with pytest.raises(IndexError, match="gives"):
            masks[torch.zeros(4, 3, 5, dtype=torch.bool)]

    def test_cat_pickle_print(self):
        masks = BitMasks(torch.rand(4, 3, 5) > 0.5)
        assert torch.equal(BitMasks.cat([masks[:1], masks[1:]]).tensor, masks.tensor)
        assert torch.equal(pickle.loads(pickle.dumps(masks)).tensor, masks.tensor)
        assert torch.equal(copy.deepcopy(masks).tensor, masks.tensor)
        assert repr(masks) == "BitMasks(num_instances=4, image_size=(3, 5))"

    def test_moves(self, device):
        masks = BitMasks(torch.ones(1, 2, 2)).to(device)
        assert masks.device.type == device

    def test_from_polygons(self):
        polygons = [[SQUARE], [[0.0, 0, 3, 0, 3, 3, 0, 3], SQUARE], []]
        for given in (PolygonMasks(polygons), PolygonMasks(polygons).polygons):
            masks = BitMasks.from_polygon_masks(given, 9, 10)
            assert masks.image_size == (9, 10)
            assert masks.area().tolist() == [36, 44, 0]

    def test_target_loses_its_corners(self):
        # where the polygon's target is a full 5 x 5 block, see tests of PolygonMasks
        masks = BitMasks.from_polygon_masks([[np.array(SQUARE)]], 12, 12)
        target = masks.crop_and_resize(torch.tensor([[0.0, 0, 10, 10]]), 7)
        assert target.dtype == torch.bool
        assert rows(target[0]) == [
            ".......",
            "..###..",
            *[".#####."] * 3,
            "..###..",
            ".......",
        ]

    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
    def test_target_of_an_aligned_box_is_the_crop(self, dtype, device):
        masks = BitMasks(torch.rand(3, 20, 24) > 0.5).to(device)
        boxes = torch.tensor([[4, 6, 12, 14], [0, 0, 8, 8], [16, 12, 24, 20]], device=device)
        crops = masks.crop_and_resize(boxes.to(dtype), 8)
        for crop, mask, (x1, y1, x2, y2) in zip(crops, masks, boxes.tolist(), strict=True):
            assert torch.equal(crop, mask[y1:y2, x1:x2])

    @pytest.mark.parametrize("pixels", [1, 2 * 20 * 24, 10**6])  # 1, 2 and all masks at a time
    def test_targets_of_chosen_objects(self, pixels, monkeypatch, device):
        monkeypatch.setattr("segdet.structures.masks._PIXELS_AT_ONCE", pixels)
        masks = BitMasks(torch.rand(3, 20, 24) > 0.5).to(device)
        objects = torch.tensor([2, 0, 2, 1], device=device)
        boxes = torch.rand(4, 4, device=device) * 8 + torch.tensor([0.0, 0, 9, 9], device=device)
        crops = masks.crop_and_resize(boxes, 8, objects)
        assert torch.equal(crops, masks[objects].crop_and_resize(boxes, 8)) and crops.any()

    def test_target_of_no_masks(self):
        assert BitMasks(torch.zeros(0, 5, 7)).crop_and_resize(torch.zeros(0, 4), 28).shape == (
            0,
            28,
            28,
        )

    def test_target_needs_one_box_each(self):
        with pytest.raises(ValueError, match=r"2 masks need boxes of shape \(2, 4\)"):
            BitMasks(torch.zeros(2, 5, 7)).crop_and_resize(torch.zeros(3, 4), 28)


class TestPolygonMasks:
    def test_takes_arrays_tensors_and_lists(self):
        masks = PolygonMasks([[SQUARE, np.array(SQUARE, np.float32)], [torch.tensor(SQUARE)]])
        assert [[part.dtype for part in parts] for parts in masks] == [
            [np.float64] * 2,
            [np.float64],
        ]
        assert len(masks) == 2

    @pytest.mark.parametrize(
        "bad, message",
        [
            (np.zeros((1, 1, 6)), "takes a list of lists of polygons, got ndarray"),
            ([np.zeros((1, 6))], "takes a list of polygons per object, got ndarray"),
            ([[[1.0, 2, 3, 4]]], r"at least 3 points x, y; got shape \(4,\)"),
            ([[[1.0, 2, 3, 4, 5, 6, 7]]], r"got shape \(7,\)"),
            ([[[[1.0, 2], [3, 4], [5, 6]]]], r"got shape \(3, 2\)"),
        ],
    )
    def test_refuses(self, bad, message):
        with pytest.raises(ValueError, match=message):
            PolygonMasks(bad)

    def test_bounding_boxes(self):
        below = [-5.0, -4, -1, -4, -1, -2]
        masks = PolygonMasks([[SQUARE, [7.0, 1, 9, 1, 9, 3]], [below], []])
        # the far corner starts at 0, as in detectron2
        expected = [[2, 1, 9, 8], [-5, -4, 0, 0], [0, 0, 0, 0]]
        assert masks.get_bounding_boxes().tensor.tolist() == expected

    def test_area_and_nonempty(self):
        masks = PolygonMasks([[SQUARE, [0.0, 0, 1, 0, 1, 1, 0, 1]], []])
        assert masks.area().tolist() == [37, 0] and masks.area().dtype == torch.float32
        assert masks.nonempty().tolist() == [True, False]

    def test_indexing(self):
        masks = PolygonMasks([[[float(i), 0, 1, 0, 1, 1]] for i in range(4)])
        first = lambda chosen: [int(parts[0][0]) for parts in chosen]  # noqa: E731
        assert first(masks[2]) == first(masks[-2]) == [2]
        assert first(masks[1:3]) == [1, 2]
        assert first(masks[[3, 0]]) == first(masks[torch.tensor([3, 0])]) == [3, 0]
        assert first(masks[torch.tensor([True, False, False, True])]) == [0, 3]
        assert first(masks[torch.zeros(4, dtype=torch.bool)]) == []
        with pytest.raises(IndexError, match="needs one dimension"):
            masks[torch.zeros(2, 2, dtype=torch.long)]
        with pytest.raises(IndexError):
            masks[4]

    def test_cat_pickle_print(self):
        masks = PolygonMasks([[SQUARE], []])
        assert len(PolygonMasks.cat([masks, masks[:0], masks])) == 4
        assert np.array_equal(pickle.loads(pickle.dumps(masks)).polygons[0][0], SQUARE)
        assert repr(masks) == "PolygonMasks(num_instances=2)"

    def test_stays_on_the_cpu(self):
        masks = PolygonMasks([[SQUARE]])
        assert masks.to("cuda") is masks and masks.device == torch.device("cpu")

    def test_target_is_a_full_block(self, device):
        target = PolygonMasks([[SQUARE]]).crop_and_resize(
            torch.tensor([[0.0, 0, 10, 10]], device=device), 7
        )
        assert target.dtype == torch.bool and target.device.type == device
        assert rows(target[0]) == [".......", *[".#####."] * 5, "......."]

    def test_targets_of_chosen_objects(self):
        masks = PolygonMasks([[SQUARE], [[0.0, 0, 3, 0, 3, 3]]])
        objects, boxes = torch.tensor([1, 0, 1]), torch.tensor([[0.0, 0, 10, 10]] * 3)
        crops = masks.crop_and_resize(boxes, 7, objects)
        assert torch.equal(crops, masks[objects].crop_and_resize(boxes, 7))

    def test_target_of_no_masks(self):
        target = PolygonMasks([]).crop_and_resize(torch.zeros(0, 4), 28)
        assert target.shape == (0, 28, 28) and target.dtype == torch.bool

    def test_target_needs_one_box_each(self):
        with pytest.raises(ValueError, match="1 masks need boxes"):
            PolygonMasks([[SQUARE]]).crop_and_resize(torch.zeros(2, 4), 28)


class TestROIMasks:
    def test_pastes(self):
        boxes = torch.tensor([[1.0, 1, 3, 4], [0.0, 0, 2, 2]])
        roi_masks = ROIMasks(torch.stack([torch.ones(4, 4), torch.full((4, 4), 0.4)]))
        masks = roi_masks.to_bitmasks(boxes, 5, 6)
        assert isinstance(masks, BitMasks) and masks.image_size == (5, 6)
        assert masks.get_bounding_boxes().tensor.tolist() == [[1, 1, 3, 4], [0, 0, 0, 0]]
        assert roi_masks.to_bitmasks(Boxes(boxes), 5, 6, threshold=0.3).area()[1] > 0
        assert torch.equal(BitMasks.from_roi_masks(roi_masks, boxes, 5, 6).tensor, masks.tensor)

    def test_indexing(self, device):
        masks = ROIMasks(torch.rand(3, 4, 4)).to(device)
        assert masks.device.type == device
        assert len(masks) == 3 and len(masks[0]) == 1 and len(masks[1:]) == 2
        assert len(masks[torch.tensor([True, False, True], device=device)]) == 2
        assert repr(masks) == "ROIMasks(num_instances=3)"

    def test_refuses_other_shapes(self):
        with pytest.raises(ValueError, match=r"ROIMasks takes an \(N, M, M\) tensor"):
            ROIMasks(torch.zeros(3, 1, 4, 4))
