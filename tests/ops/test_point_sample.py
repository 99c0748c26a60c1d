import math

import pytest
import torch
from torch import Tensor

from segdet.ops import point_sample


def by_definition(maps: Tensor, points: Tensor, align_corners: bool) -> Tensor:
    """(N, C, P), point by point in float64."""
    maps, (count, channels, height, width) = maps.double(), maps.shape
    out = torch.zeros(count, channels, points.shape[1], dtype=torch.float64)
    for n in range(count):
        for p, (u, v) in enumerate(points[n].double().tolist()):
            if align_corners:
                x, y = u * (width - 1), v * (height - 1)
            else:
                x, y = u * width - 0.5, v * height - 0.5
            for row in (math.floor(y), math.floor(y) + 1):
                for column in (math.floor(x), math.floor(x) + 1):
                    if 0 <= row < height and 0 <= column < width:
                        share = (1 - abs(y - row)) * (1 - abs(x - column))
                        out[n, :, p] += share * maps[n, :, row, column]
    return out


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_matches_definition(device, dtype, align_corners):
    maps, points = torch.randn(2, 3, 7, 9).to(dtype), (torch.rand(2, 40, 2) * 1.4 - 0.2).to(dtype)
    expected = by_definition(maps, points, align_corners)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    for layout in (torch.contiguous_format, torch.channels_last):
        ours = maps.to(device, memory_format=layout)
        out = point_sample(ours, points.to(device), align_corners)
        torch.testing.assert_close(out.cpu().double(), expected, atol=tolerance, rtol=0)


def test_the_first_cells_centre(device):
    maps = torch.arange(8.0, device=device).reshape(1, 1, 2, 4)
    points = torch.tensor([[[0.5 / 4, 0.5 / 2], [0.5, 0.5], [0.0, 0.25]]], device=device)
    # The last is half a cell from the first centre, as far from the zeros beyond the edge.
    assert point_sample(maps + 2, points).tolist() == [[[2.0, 5.5, 1.0]]]


def test_points_on_a_grid(device):
    maps, grid = torch.randn(2, 3, 7, 9, device=device), torch.rand(2, 4, 5, 2, device=device)
    out = point_sample(maps, grid)
    assert out.shape == (2, 3, 4, 5)
    torch.testing.assert_close(out.flatten(2), point_sample(maps, grid.flatten(1, 2)))


def test_nothing_to_sample(device):
    maps, points = torch.randn(2, 3, 7, 9, device=device), torch.rand(2, 0, 2, device=device)
    assert point_sample(maps, points).shape == (2, 3, 0)
    points = torch.rand(0, 5, 2, device=device)
    assert point_sample(maps[:0], points).shape == (0, 3, 5)


def test_points_that_are_not_finite_do_no_harm(device):
    maps, points = torch.ones(1, 1, 4, 4, device=device), torch.full((1, 3, 2), 0.5, device=device)
    points[0, 0, 0], points[0, 1, 1] = math.nan, math.inf
    assert point_sample(maps, points)[0, 0, 2].item() == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(device, dtype):
    maps, points = torch.randn(2, 3, 7, 9, device=device).to(dtype), torch.rand(2, 5, 2).to(device)
    with torch.autocast(device, torch.bfloat16):
        out = point_sample(maps, points)
    assert torch.equal(out, point_sample(maps.float(), points).to(dtype))


@pytest.mark.parametrize("maps, points", [((2, 3, 7), (2, 5, 2)), ((2, 3, 7, 9), (1, 5, 2))])
def test_rejects_wrong_shapes(device, maps, points):
    with pytest.raises(RuntimeError, match=r"segdet::point_sample: (input|point_coords) must be"):
        point_sample(torch.zeros(maps, device=device), torch.zeros(points, device=device))


def test_gradients(device):
    maps = torch.randn(2, 2, 4, 5, dtype=torch.float64, device=device, requires_grad=True)
    points = torch.rand(2, 6, 2, dtype=torch.float64, device=device, requires_grad=True)
    nondet = 1e-12 if device == "cuda" else 0
    assert torch.autograd.gradcheck(point_sample, (maps, points), nondet_tol=nondet)


class Sampler(torch.nn.Module):
    def forward(self, maps: Tensor, points: Tensor) -> Tensor:
        return point_sample(maps * 2, points).mean(2)


def test_compiles_and_exports_without_a_break(device):
    maps, points = torch.randn(2, 3, 7, 9, device=device), torch.rand(2, 5, 2, device=device)
    expected = Sampler()(maps, points)
    for module in (
        torch.compile(Sampler(), fullgraph=True, backend="aot_eager"),
        torch.export.export(Sampler(), (maps, points)).module(),
    ):
        torch.testing.assert_close(module(maps, points), expected)
