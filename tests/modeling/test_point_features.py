import numpy as np
import pytest
import torch

from segdet.errors import ConfigError
from segdet.modeling.point_features import (
    generate_regular_grid_point_coords,
    get_point_coords_wrt_image,
    get_uncertain_point_coords_on_grid,
    get_uncertain_point_coords_with_randomness,
    point_sample_fine_grained_features,
    sample_point_labels,
    subdivide,
)
from segdet.structures import BitMasks, Boxes, PolygonMasks, Proposals, Targets


def sample_by_definition(image: np.ndarray, x: float, y: float) -> np.ndarray:
    """A bilinear sample of (C, H, W) at pixels whose centres are at half ones; zeros outside."""
    x, y = x - 0.5, y - 0.5
    left, top = int(np.floor(x)), int(np.floor(y))
    total = np.zeros(len(image))
    for j, wx in ((left, left + 1 - x), (left + 1, x - left)):
        for i, wy in ((top, top + 1 - y), (top + 1, y - top)):
            if 0 <= i < image.shape[1] and 0 <= j < image.shape[2]:
                total += wx * wy * image[:, i, j]
    return total


def test_the_grid_has_cell_centres_row_by_row():
    expected = torch.tensor([[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]])
    grid = generate_regular_grid_point_coords(3, 2, "cpu")
    assert torch.equal(grid, expected.expand(3, -1, -1))
    assert generate_regular_grid_point_coords(0, 5, "cpu", torch.float64).shape == (0, 25, 2)


def test_points_of_a_box_are_pixels_of_the_image():
    box = torch.tensor([[10.0, 20.0, 30.0, 60.0]])
    coords = get_point_coords_wrt_image(box, torch.tensor([[[0.0, 0.0], [0.25, 0.5], [1.0, 1.0]]]))
    assert coords.tolist() == [[[10, 20], [15, 40], [30, 60]]]


def test_fine_features_are_bilinear_samples_of_the_padded_maps():
    torch.manual_seed(0)
    maps = [torch.randn(2, 3, 8, 12).double(), torch.randn(2, 2, 4, 6).double()]  # strides 4, 8
    boxes = [torch.tensor([[3.0, 2, 40, 30], [10, 10, 12, 11]]), torch.tensor([[-5.0, 0, 60, 35]])]
    points = torch.rand(3, 5, 2).double()
    boxes = [Boxes(b.double()) for b in boxes]
    found, coords = point_sample_fine_grained_features(maps, [1 / 4, 1 / 8], boxes, points)
    assert found.shape == (3, 5, 5)
    for r, (image, box) in enumerate([(0, boxes[0][0]), (0, boxes[0][1]), (1, boxes[1][0])]):
        x0, y0, x1, y1 = box.tensor[0].tolist()
        for p in range(5):
            x = x0 + points[r, p, 0].item() * (x1 - x0)
            y = y0 + points[r, p, 1].item() * (y1 - y0)
            np.testing.assert_allclose(coords[r, p], [x, y])
            expected = [
                sample_by_definition(m[image].numpy(), x / s, y / s)
                for m, s in zip(maps, (4, 8), strict=True)
            ]
            np.testing.assert_allclose(found[r, :, p], np.concatenate(expected), atol=1e-6)


def test_no_regions_give_no_features_that_are_connected():
    maps = torch.randn(1, 3, 8, 8, requires_grad=True)
    boxes, points = [Boxes(torch.zeros(0, 4))], torch.zeros(0, 7, 2)
    found, _ = point_sample_fine_grained_features([maps], [0.25], boxes, points)
    assert found.shape == (0, 3, 7)
    found.sum().backward()
    assert maps.grad is not None


def test_the_least_certain_cells_of_a_map():
    uncertainty = torch.arange(8.0).reshape(1, 1, 2, 4)
    indices, coords = get_uncertain_point_coords_on_grid(uncertainty, 3)
    assert indices.tolist() == [[7, 6, 5]]
    assert coords.tolist() == [[[0.875, 0.75], [0.625, 0.75], [0.375, 0.75]]]
    indices, coords = get_uncertain_point_coords_on_grid(uncertainty, 100)
    assert sorted(indices[0].tolist()) == list(range(8)) and coords.shape == (1, 8, 2)


def test_cells_keep_their_precision_in_half():
    indices, coords = get_uncertain_point_coords_on_grid(torch.zeros(1, 1, 224, 224).half(), 50176)
    assert coords.dtype == torch.float32
    cells = (coords * 224 - 0.5).round().long()
    assert torch.equal(cells[..., 1] * 224 + cells[..., 0], indices)


def test_training_points_are_the_uncertain_of_many_and_some_more():
    logits = torch.linspace(-1, 1, 50).expand(2, 1, 50, 50).clone()  # uncertain in the middle

    def draw() -> torch.Tensor:
        torch.manual_seed(5)
        return get_uncertain_point_coords_with_randomness(logits, lambda x: -x.abs(), 10, 3, 0.75)

    points = draw()
    assert points.shape == (2, 10, 2) and torch.equal(points, draw())
    torch.manual_seed(5)
    drawn, more = torch.rand(2, 30, 2), torch.rand(2, 3, 2)  # one draw after the other
    nearest = (drawn[..., 0] - 0.5).abs().argsort(dim=1)[:, :7]
    for row in range(2):
        assert torch.equal(points[row, :7], drawn[row, nearest[row]])
    assert torch.equal(points[:, 7:], more)


def test_training_points_carry_no_gradient():
    logits = torch.randn(1, 1, 4, 4, requires_grad=True)
    points = get_uncertain_point_coords_with_randomness(logits, lambda x: -x.abs(), 4, 2, 1.0)
    assert points.shape == (1, 4, 2) and not points.requires_grad


def a_case() -> tuple[list[Proposals], list[Targets]]:
    """Two images; the regions are of object 1, object 0, and of none."""
    masks = torch.zeros(2, 20, 30, dtype=torch.bool)
    masks[0, 5:15, 10:20] = masks[1, 0:10, 0:10] = True
    targets = [
        Targets((20, 30), gt_masks=BitMasks(masks)),
        Targets((40, 40), gt_masks=BitMasks(torch.zeros(0, 40, 40))),
    ]
    boxes = torch.tensor([[0.0, 0, 20, 20], [10, 5, 20, 15]])
    proposals = [
        Proposals((20, 30), proposal_boxes=Boxes(boxes), gt_index=torch.tensor([1, 0])),
        Proposals((40, 40), proposal_boxes=Boxes(torch.zeros(0, 4))),
    ]
    return proposals, targets


def test_labels_are_soft_samples_of_the_regions_own_object():
    proposals, targets = a_case()
    points = torch.tensor([[[0.25, 0.25], [0.5, 0.25], [0.75, 0.75]]]).expand(2, -1, -1)
    labels = sample_point_labels(proposals, targets, points)
    # of object 1: inside, on its right border, outside; of object 0, whose box it fills: inside
    torch.testing.assert_close(labels, torch.tensor([[1.0, 0.5, 0.0], [1.0, 1.0, 1.0]]))


def test_polygons_are_refused():
    proposals, targets = a_case()
    square = np.array([0.0, 0, 9, 0, 9, 9, 0, 9])
    targets[0] = Targets((20, 30), gt_masks=PolygonMasks([[square], [square]]))
    with pytest.raises(ConfigError, match=r"set INPUT\.MASK_FORMAT to bitmask"):
        sample_point_labels(proposals, targets, torch.zeros(2, 1, 2))


def test_subdivision_replaces_every_class_at_the_uncertain_cells():
    coarse = torch.zeros(1, 3, 2, 2)
    coarse[0, 0, 0] = torch.tensor([-1.0, 3.0])
    coarse[0, 0, 1] = torch.tensor([-1.0, 3.0])  # uncertain: between the columns
    asked = []

    def predict(points: torch.Tensor) -> torch.Tensor:
        asked.append(points)
        return torch.tensor([100.0, 200.0, 300.0])[None, :, None].expand(1, 3, points.shape[1])

    def uncertainty(logits: torch.Tensor) -> torch.Tensor:
        return -logits[:, :1].abs()

    fine = subdivide(coarse, predict, uncertainty, steps=1, num_points=4)
    # Doubled: -1, 0, 2, 3 in each row; the four zeros in the second column are predicted anew.
    assert torch.equal(fine[0, :, :, 1], torch.tensor([100.0, 200, 300])[:, None].expand(3, 4))
    others = fine[0, 0][:, [0, 2, 3]]
    assert torch.equal(others, torch.tensor([-1.0, 2, 3]).expand(4, 3))
    assert sorted(asked[0][0].tolist()) == [[0.375, (i + 0.5) / 4] for i in range(4)]


def test_each_step_of_subdivision_doubles():
    fine = subdivide(
        torch.randn(2, 1, 3, 5),
        lambda points: points[..., 0][:, None],
        lambda logits: -logits.abs(),
        steps=3,
        num_points=7,
    )
    assert fine.shape == (2, 1, 24, 40)
