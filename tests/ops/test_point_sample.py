import math

import pytest
import torch
from torch import Tensor

from segdet.ops import point_sample
from tests.ops.threads import check_same_bits

LAYOUTS = (torch.contiguous_format, torch.channels_last)


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
def test_matches_definition(implementation, device, dtype, align_corners):
    # More channels and points than a buffer holds.
    maps, points = torch.randn(2, 131, 7, 9).to(dtype), torch.rand(2, 70, 2).to(dtype) * 1.4 - 0.2
    expected = by_definition(maps, points, align_corners)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    wide = torch.zeros(2, 131, 7, 11).to(dtype)
    for ours in (*(maps.to(memory_format=layout) for layout in LAYOUTS), wide[..., 1:-1]):
        out = point_sample(ours.copy_(maps).to(device), points.to(device), align_corners)
        assert out.is_contiguous()
        torch.testing.assert_close(out.cpu().double(), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_match_torchs_grid_sampling(compiled, layout, align_corners):
    maps = torch.randn(2, 131, 7, 9, device=compiled).to(memory_format=layout).requires_grad_()
    points = (torch.rand(2, 70, 2, device=compiled) * 1.4 - 0.2).requires_grad_()
    out = point_sample(maps, points, align_corners)
    upstream = torch.randn_like(out)
    of_maps, of_points = torch.autograd.grad(out, (maps, points), upstream)
    grid = 2 * points[:, :, None] - 1
    peer = torch.nn.functional.grid_sample(maps, grid, align_corners=align_corners)[..., 0]
    peer_maps, peer_points = torch.autograd.grad(peer, (maps, points), upstream)
    assert of_maps.is_contiguous(memory_format=layout)
    torch.testing.assert_close(of_maps, peer_maps, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(of_points, peer_points, atol=1e-3, rtol=1e-4)


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


@pytest.mark.parametrize(
    "maps, points",
    [((2, 3, 7, 9), (2, 0, 2)), ((0, 3, 7, 9), (0, 5, 2)), ((2, 0, 7, 9), (2, 5, 2))],
)
def test_nothing_to_sample(compiled, maps, points):
    leaf = torch.randn(maps, device=compiled).requires_grad_()
    places = torch.rand(points, device=compiled).requires_grad_()
    out = point_sample(leaf, places)
    assert out.shape == (maps[0], maps[1], points[1])
    out.sum().backward()
    assert leaf.grad is not None and not leaf.grad.any()
    assert places.grad is not None and not places.grad.any()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_points_that_are_not_finite_or_far_off_give_zeros(implementation, device, layout):
    maps = torch.full((1, 2, 4, 4), math.inf).to(device, memory_format=layout).requires_grad_()
    values = (math.nan, math.inf, -math.inf, 3e38, -3e38, 2.0, -0.126)
    points = torch.tensor([[(v, 0.5) for v in values] + [(0.5, v) for v in values]], device=device)
    points.requires_grad_()
    out = point_sample(maps, points)
    assert not out.any()
    grads = torch.autograd.grad(out, (maps, points), torch.full_like(out, math.nan))
    if implementation == "compiled":
        assert not grads[0].any() and not grads[1].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_half_precision_is_computed_in_float32(compiled, dtype, layout):
    maps = torch.randn(2, 3, 7, 9, device=compiled).to(dtype, memory_format=layout)
    points = torch.rand(2, 5, 2, device=compiled)
    leaves, wide = [maps.requires_grad_(), points.requires_grad_()], maps.detach().float()
    with torch.autocast(compiled, torch.bfloat16):
        out = point_sample(*leaves)
    expected = point_sample(wide.requires_grad_(), points)
    torch.testing.assert_close(out, expected.to(dtype), atol=1e-6, rtol=1e-2)
    upstream = torch.randn_like(out)
    of_maps, of_points = torch.autograd.grad(out, leaves, upstream)
    wide_maps, wide_points = torch.autograd.grad(expected, (wide, points), upstream.float())
    assert of_maps.dtype == dtype and of_points.dtype == torch.float32
    torch.testing.assert_close(of_maps, wide_maps.to(dtype), atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(of_points, wide_points)


@pytest.mark.parametrize("maps, points", [((2, 3, 7), (2, 5, 2)), ((2, 3, 7, 9), (1, 5, 2))])
def test_rejects_wrong_shapes(device, maps, points):
    with pytest.raises(RuntimeError, match=r"segdet::point_sample: (input|point_coords) must be"):
        point_sample(torch.zeros(maps, device=device), torch.zeros(points, device=device))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("align_corners", [False, True])
def test_gradients(implementation, device, layout, align_corners):
    maps = torch.randn(2, 2, 4, 5, dtype=torch.float64, device=device).to(memory_format=layout)
    # Some lie between the last centre and the edge; none where the slope jumps.
    cells = (
        torch.randint(-1, 4, (2, 9, 2), device=device) + 0.1 + 0.8 * torch.rand(2, 9, 2).to(maps)
    )
    size = torch.tensor([5.0, 4.0]).to(maps)
    points = cells / (size - 1) if align_corners else (cells + 0.5) / size
    assert torch.autograd.gradcheck(
        lambda maps, points: point_sample(maps, points, align_corners),
        (maps.requires_grad_(), points.requires_grad_()),
        nondet_tol=1e-12 if device == "cuda" else 0,
    )


def test_second_gradient(compiled):
    maps = torch.randn(2, 2, 4, 5, dtype=torch.float64, device=compiled, requires_grad=True)
    points = torch.rand(2, 3, 2, dtype=torch.float64, device=compiled)
    assert torch.autograd.gradgradcheck(
        lambda maps: point_sample(maps, points),
        maps,
        nondet_tol=1e-12 if compiled == "cuda" else 0,
    )


def test_a_second_gradient_of_the_coordinates_is_refused(compiled):
    maps = torch.randn(1, 2, 4, 5, device=compiled)
    points = torch.rand(1, 3, 2, device=compiled, requires_grad=True)
    out = point_sample(maps.requires_grad_(), points)
    (grad,) = torch.autograd.grad(out.sum(), points, create_graph=True)
    with pytest.raises(RuntimeError, match="point_sample_coords_backward is not differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_bits_for_any_number_of_threads(layout):
    maps, points = torch.randn(2, 200, 20, 20).to(memory_format=layout), torch.rand(2, 300, 2)
    maps, points = maps.requires_grad_(), points.requires_grad_()

    def run() -> list[Tensor]:
        out = point_sample(maps, points)
        return [out, *torch.autograd.grad(out.square().sum(), (maps, points))]

    check_same_bits(run)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_is_a_well_formed_op(compiled, layout):
    maps = torch.randn(2, 3, 8, 9, device=compiled).to(memory_format=layout).requires_grad_()
    points = torch.rand(2, 5, 2, device=compiled).requires_grad_()
    torch.library.opcheck(torch.ops.segdet.point_sample, (maps, points, False))
    grad = torch.randn(2, 3, 5, device=compiled)
    last = layout == torch.channels_last
    torch.library.opcheck(
        torch.ops.segdet.point_sample_backward,
        (grad.clone().requires_grad_(), points, 8, 9, False, last, False),
    )
    torch.library.opcheck(
        torch.ops.segdet.point_sample_coords_backward,
        (grad, maps.detach(), points.detach(), False),
    )


class Sampler(torch.nn.Module):
    def forward(self, maps: Tensor, points: Tensor) -> Tensor:
        return point_sample(maps * 2, points).mean(2)


@pytest.mark.parametrize("grid", [(5,), (4, 5)])
def test_compiles_and_exports_without_a_break(compiled, grid):
    maps, points = torch.randn(2, 3, 7, 9, device=compiled), torch.rand(2, *grid, 2).to(compiled)
    expected = Sampler()(maps, points)
    for module in (
        torch.compile(Sampler(), fullgraph=True, backend="aot_eager"),
        torch.export.export(Sampler(), (maps, points)).module(),
    ):
        torch.testing.assert_close(module(maps, points), expected)
