import math

import pytest
import torch
from torch import Tensor

from segdet.layers import ROIAlignRotated
from segdet.ops import roi_align, roi_align_rotated
from tests.ops.pooling import bilinear, value_and_gradient
from tests.ops.threads import check_same_bits

NAN, INF = math.nan, math.inf


def by_definition(
    maps: Tensor, rois: Tensor, size: tuple[int, int], scale: float, ratio: int
) -> Tensor:
    """Every sample of every bin, one after the other, in float64."""
    maps = maps.double()
    out = torch.zeros(len(rois), maps.shape[1], *size, dtype=torch.float64)
    for r, (image, cx, cy, w, h, degrees) in enumerate(rois.double().tolist()):
        bin_h, bin_w = h * scale / size[0], w * scale / size[1]
        grid_h = ratio if ratio > 0 else math.ceil(bin_h)
        grid_w = ratio if ratio > 0 else math.ceil(bin_w)
        turn = complex(math.cos(math.radians(degrees)), math.sin(math.radians(degrees)))
        for py in range(size[0]):
            for px in range(size[1]):
                for iy in range(grid_h):
                    for ix in range(grid_w):
                        up = -((py + (iy + 0.5) / grid_h) * bin_h - h * scale / 2)
                        right = (px + (ix + 0.5) / grid_w) * bin_w - w * scale / 2
                        turned = complex(right, up) * turn  # counter-clockwise, y upwards
                        x, y = cx * scale - 0.5 + turned.real, cy * scale - 0.5 - turned.imag
                        out[r, :, py, px] += bilinear(maps[int(image)], y, x)
                out[r, :, py, px] /= max(grid_h * grid_w, 1)
    return out


def random_rois(n: int, images: int, side: float) -> Tensor:
    """(n, 6): centres in and around an image of that side, any angle."""
    centre = (torch.rand(n, 2) * 1.4 - 0.2) * side
    extent = torch.rand(n, 2) * side
    angle = torch.rand(n, 1) * 720 - 360
    return torch.cat([torch.arange(n)[:, None] % images, centre, extent, angle], dim=1)


@pytest.mark.parametrize("ratio", [0, 1, 3])
@pytest.mark.parametrize("size", [(3, 3), (2, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_matches_definition(implementation, device, dtype, size, ratio):
    maps, rois = torch.randn(2, 3, 11, 14).to(dtype), random_rois(10, 2, 45.0).to(dtype)
    out = roi_align_rotated(maps.to(device), rois.to(device), size, 0.25, ratio)
    expected = by_definition(maps, rois, size, 0.25, ratio)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-11
    torch.testing.assert_close(out.cpu().double(), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("ratio", [0, 2])
def test_without_rotation_it_is_roi_align(implementation, device, ratio):
    maps, rois = torch.randn(2, 3, 11, 14, device=device), random_rois(12, 2, 45.0).to(device)
    rois[:, 3:5] += 0.5
    rois[:, 5] = 0
    low, high = rois[:, 1:3] - rois[:, 3:5] / 2, rois[:, 1:3] + rois[:, 3:5] / 2
    upright = torch.cat([rois[:, :1], low, high], dim=1)
    torch.testing.assert_close(
        roi_align_rotated(maps, rois, 3, 0.25, ratio),
        roi_align(maps, upright, 3, 0.25, ratio, aligned=True),
        atol=1e-4,
        rtol=0,
    )


def test_quarter_turn_of_a_square_turns_the_bins(implementation, device):
    maps = torch.randn(1, 2, 9, 9, device=device)
    rois = torch.tensor([[0.0, 4.5, 4.5, 6, 6, 90]], device=device)
    upright = roi_align_rotated(maps, rois * torch.tensor([1, 1, 1, 1, 1, 0.0], device=device), 3)
    # The region's right is now the image's top.
    torch.testing.assert_close(
        roi_align_rotated(maps, rois, 3), upright.rot90(-1, (2, 3)), atol=1e-5, rtol=0
    )


def test_more_channels_than_one_block_holds(compiled):
    maps, rois = torch.randn(2, 75, 6, 7), random_rois(5, 2, 24.0)
    expected = by_definition(maps, rois, (2, 2), 0.25, 0).float()
    for layout in (torch.contiguous_format, torch.channels_last):
        out = roi_align_rotated(maps.to(compiled, memory_format=layout), rois.to(compiled), 2, 0.25)
        assert out.is_contiguous(memory_format=layout)
        torch.testing.assert_close(out.cpu(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize(
    "box",
    [
        (100, 100, 20, 20, 30),  # beyond the map
        (-60, -60, 20, 20, 30),
        (NAN, 1, 3, 3, 0),
        (1, 1, 3, NAN, 0),
        (3, 3, 3, 3, NAN),
        (3, 3, 3, 3, INF),
        (-INF, 1, 3, 3, 10),
        (1, 1, INF, INF, 10),
        (1e30, 1e30, 2e30, 2e30, 10),
    ],
)
def test_regions_off_the_map_are_zero(implementation, device, box, ratio):
    maps = torch.ones(1, 2, 6, 7, device=device, requires_grad=True)
    rois = torch.tensor([[0.0, *box], [0.0, 3, 3, 2, 2, 20]], device=device)
    out = roi_align_rotated(maps, rois, 2, 1.0, ratio)
    assert not out[0].any()
    torch.testing.assert_close(out[1], torch.ones_like(out[1]))
    (grad,) = torch.autograd.grad(out[0].sum() + 0 * out[1].sum(), maps)
    assert not grad.any()


def test_region_without_extent_is_zero_where_adaptive(implementation, device):
    maps = torch.ones(1, 1, 6, 7, device=device)
    rois = torch.tensor([[0.0, 2, 2, 0, 0, 10], [0.0, 2, 2, -3, 3, 10]], device=device)
    assert not roi_align_rotated(maps, rois, 3).any()
    assert roi_align_rotated(maps, rois[:1], 3, sampling_ratio=2).eq(1).all()


@pytest.mark.parametrize("centre", [(1.7, 2.1), (3e5, -2e5)])
def test_region_much_larger_than_the_map_costs_no_more_than_the_map(implementation, device, centre):
    maps = torch.ones(1, 1, 4, 4, device=device)
    rois = torch.tensor([[0.0, *centre, 1e6, 1e6, 33]], device=device)
    out = roi_align_rotated(maps, rois, 1)  # 1e12 samples, about 25 of which meet the map
    torch.testing.assert_close(out.item(), 25 / 1e12, rtol=0.3, atol=0)


@pytest.mark.parametrize("dtype, farthest", [(torch.float32, 2.0**22), (torch.float64, 2.0**48)])
def test_a_region_too_large_for_its_type_is_zero(implementation, device, dtype, farthest):
    maps = torch.ones(1, 1, 4, 4, dtype=dtype, device=device)
    rois = torch.tensor([[0, 2, 2, width, 4, 0] for width in (farthest / 2, farthest)])
    out = roi_align_rotated(maps, rois.to(device, dtype), 1)
    assert out[0].all() and not out[1].any()


def test_nothing_to_pool(implementation, device):
    maps = torch.randn(2, 3, 5, 5, device=device, requires_grad=True)
    out = roi_align_rotated(maps, torch.zeros(0, 6, device=device), (2, 4))
    assert out.shape == (0, 3, 2, 4)
    out.sum().backward()
    assert maps.grad is not None and not maps.grad.any()
    rois = torch.tensor([[0.0, 1, 1, 3, 3, 5]], device=device)
    none = roi_align_rotated(torch.zeros(1, 0, 5, 5, device=device), rois, 2)
    assert none.shape == (1, 0, 2, 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_half_precision_is_computed_in_float32(implementation, device, dtype, layout):
    maps = torch.randn(2, 8, 11, 9, device=device).to(dtype, memory_format=layout)
    maps.requires_grad_()
    wide = maps.detach().float().requires_grad_()
    rois = random_rois(9, 2, 40.0).to(device)
    with torch.autocast(device, torch.bfloat16):
        out = roi_align_rotated(maps, rois, 2, 0.25)
    expected = roi_align_rotated(wide, rois, 2, 0.25)
    torch.testing.assert_close(out, expected.to(dtype), atol=1e-5, rtol=1e-2)
    upstream = torch.randn_like(out)
    (grad,) = torch.autograd.grad(out, maps, upstream)
    (expected,) = torch.autograd.grad(expected, wide, upstream.float())
    torch.testing.assert_close(grad, expected.to(dtype), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize(
    "maps, rois, message",
    [
        ((3, 5, 5), (1, 6), r"input must be \(B, C, H, W\), has 3 dimensions"),
        ((1, 3, 5, 5), (1, 5), r"rois must be \(R, 6\), has"),
        ((1, 3, 5, 5), (6,), r"rois must be \(R, 6\), has"),
    ],
)
def test_rejects_wrong_shapes(implementation, device, maps, rois, message):
    with pytest.raises(RuntimeError, match=message):
        roi_align_rotated(torch.zeros(maps, device=device), torch.zeros(rois, device=device), 2)


@pytest.mark.parametrize("index", [2.0, -1.0, NAN])
def test_rejects_an_image_that_is_not_there(implementation, index):
    with pytest.raises(RuntimeError, match=r"index in the batch and must be in \[0, 2\)"):
        roi_align_rotated(torch.zeros(2, 3, 5, 5), torch.tensor([[index, 0, 0, 1, 1, 0]]), 2)


def test_rejects_what_it_cannot_compute(compiled):
    maps, rois = torch.zeros(1, 3, 5, 5, device=compiled), torch.zeros(1, 6, device=compiled)
    with pytest.raises(RuntimeError, match="input must be floating point, is Long"):
        roi_align_rotated(maps.long(), rois, 2)
    with pytest.raises(RuntimeError, match=r"output_size must be positive, is \(0, 2\)"):
        roi_align_rotated(maps, rois, (0, 2))
    with pytest.raises(RuntimeError, match="at least one cell, has height 0 and width 5"):
        roi_align_rotated(maps[:, :, :0], rois, 2)


@pytest.mark.parametrize("ratio", [0, 2])
def test_gradient(implementation, device, ratio):
    maps = torch.randn(2, 2, 4, 5, dtype=torch.float64, device=device, requires_grad=True)
    rois = random_rois(3, 2, 8.0).double().to(device)
    assert torch.autograd.gradcheck(
        lambda maps: roi_align_rotated(maps, rois, (2, 1), 0.5, ratio),
        maps,
        nondet_tol=1e-12 if device == "cuda" else 0,
    )


def test_second_gradient(compiled):
    maps = torch.randn(1, 2, 3, 4, dtype=torch.float64, device=compiled)
    maps = maps.to(memory_format=torch.channels_last).requires_grad_()
    rois = random_rois(2, 1, 6.0).double().to(compiled)
    assert torch.autograd.gradgradcheck(
        lambda maps: roi_align_rotated(maps, rois, 2, 0.5),
        maps,
        nondet_tol=1e-12 if compiled == "cuda" else 0,
    )


def test_same_bits_for_any_number_of_threads():
    maps, rois = torch.randn(2, 70, 20, 20, requires_grad=True), random_rois(60, 2, 20.0)
    check_same_bits(lambda: value_and_gradient(roi_align_rotated(maps, rois, 7), maps))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_is_a_well_formed_op(compiled, layout):
    maps = torch.randn(2, 3, 8, 9, device=compiled).to(memory_format=layout).requires_grad_()
    rois = random_rois(4, 2, 9.0).to(compiled)
    torch.library.opcheck(torch.ops.segdet.roi_align_rotated, (maps, rois, 2, 3, 0.5, 0))
    grad = torch.randn(4, 3, 2, 3, device=compiled).to(memory_format=layout).requires_grad_()
    torch.library.opcheck(
        torch.ops.segdet.roi_align_rotated_backward, (grad, rois, 2, 3, 8, 9, 0.5, 0, False)
    )


def test_layer_compiles_and_exports_without_a_break(compiled):
    layer = ROIAlignRotated((2, 3), 0.5, 0)
    maps, rois = torch.randn(2, 8, 6, 7, device=compiled), random_rois(4, 2, 9.0).to(compiled)
    expected = roi_align_rotated(maps, rois, (2, 3), 0.5)
    for module in (
        layer,
        torch.compile(layer, fullgraph=True, backend="aot_eager"),
        torch.export.export(layer, (maps, rois)).module(),
    ):
        torch.testing.assert_close(module(maps, rois), expected)


def test_layer_tells_its_settings_and_refuses_upright_regions():
    layer = ROIAlignRotated(7, 0.25, 2)
    assert repr(layer) == "ROIAlignRotated(output_size=7, spatial_scale=0.25, sampling_ratio=2)"
    with pytest.raises(ValueError, match=r"rois must be \(R, 6\), have shape \(1, 5\)"):
        layer(torch.zeros(1, 1, 4, 4), torch.zeros(1, 5))
