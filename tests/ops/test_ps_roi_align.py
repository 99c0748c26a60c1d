import math

import pytest
import torch
from torch import Tensor

from segdet.ops import ps_roi_align
from tests.ops.pooling import bilinear, random_rois, value_and_gradient
from tests.ops.threads import check_same_bits

NAN, INF = math.nan, math.inf


def align_by_definition(
    maps: Tensor, rois: Tensor, size: tuple[int, int], scale: float, ratio: int, group: int
) -> Tensor:
    """Every sample of every bin, one after the other, in float64."""
    maps = maps.double()
    groups = (group, group) if group else size
    channels = maps.shape[1] // groups[0] // groups[1]
    out = torch.zeros(len(rois), channels, *size, dtype=torch.float64)
    for r, (image, *box) in enumerate(rois.double().tolist()):
        x1, y1, x2, y2 = (value * scale - 0.5 for value in box)
        bin_h, bin_w = (y2 - y1) / size[0], (x2 - x1) / size[1]
        grid_h = ratio if ratio > 0 else math.ceil(bin_h)
        grid_w = ratio if ratio > 0 else math.ceil(bin_w)
        for i in range(size[0]):
            for j in range(size[1]):
                gi, gj = i * groups[0] // size[0], j * groups[1] // size[1]
                own = maps[int(image), gi * groups[1] + gj :: groups[0] * groups[1]]
                for iy in range(grid_h):
                    for ix in range(grid_w):
                        y = y1 + (i + (iy + 0.5) / grid_h) * bin_h
                        x = x1 + (j + (ix + 0.5) / grid_w) * bin_w
                        out[r, :, i, j] += bilinear(own, y, x)
                out[r, :, i, j] /= max(grid_h * grid_w, 1)
    return out


@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("size, group", [((3, 3), None), ((2, 3), None), ((5, 4), 2), ((2, 2), 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_matches_definition(implementation, device, dtype, size, group, ratio):
    count = group * group if group else size[0] * size[1]
    maps, rois = torch.randn(2, 2 * count, 11, 9).to(dtype), random_rois(8, 2, 40.0).to(dtype)
    out = ps_roi_align(maps.to(device), rois.to(device), size, 0.25, ratio, group)
    expected = align_by_definition(maps, rois, size, 0.25, ratio, group)
    tolerance = 2e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(out.cpu().double(), expected, atol=tolerance, rtol=0)


def test_more_channels_than_one_vector_holds(compiled):
    maps, rois = torch.randn(2, 37 * 4, 6, 7), random_rois(5, 2, 24.0)
    expected = align_by_definition(maps, rois, (2, 2), 0.25, 0, None).float()
    for layout in (torch.contiguous_format, torch.channels_last):
        out = ps_roi_align(maps.to(compiled, memory_format=layout), rois.to(compiled), 2, 0.25)
        torch.testing.assert_close(out.cpu(), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize(
    "box",
    [
        (100, 100, 120, 120),  # beyond the map
        (-60, -60, -40, -40),
        (NAN, 1, 3, 3),
        (1, 1, 3, NAN),
        (-INF, 1, 3, 3),
        (1, 1, INF, INF),
        (-INF, -INF, INF, INF),
        (-1e30, -1e30, 1e30, 1e30),
    ],
)
def test_regions_off_the_map_are_zero(implementation, device, box, ratio):
    maps = torch.ones(1, 8, 6, 7, device=device, requires_grad=True)
    rois = torch.tensor([[0.0, *box], [0.0, 1, 1, 4, 4]], device=device)
    out = ps_roi_align(maps, rois, 2, 1.0, ratio)
    assert not out[0].any()
    torch.testing.assert_close(out[1], torch.ones_like(out[1]))
    out[:1].sum().backward()
    assert maps.grad is not None and not maps.grad.any()


def test_a_region_without_extent_is_zero_where_adaptive(implementation, device):
    maps = torch.ones(1, 4, 6, 7, device=device)
    rois = torch.tensor([[0.0, 2, 2, 2, 2]], device=device)
    assert not ps_roi_align(maps, rois, 2).any()
    assert ps_roi_align(maps, rois, 2, sampling_ratio=2).eq(1).all()


def test_nothing_to_pool(implementation, device):
    maps = torch.randn(2, 8, 5, 5, device=device, requires_grad=True)
    out = ps_roi_align(maps, torch.zeros(0, 5, device=device), 2)
    assert out.shape == (0, 2, 2, 2)
    out.sum().backward()
    assert maps.grad is not None and not maps.grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(implementation, device, dtype):
    maps = torch.randn(2, 8, 11, 9, device=device).to(dtype)
    rois = random_rois(9, 2, 40.0).to(device) + 0.003  # less than the narrow types resolve
    with torch.autocast(device, torch.bfloat16):
        out = ps_roi_align(maps, rois, 2, 0.25)
    expected = ps_roi_align(maps.float(), rois, 2, 0.25)
    torch.testing.assert_close(out, expected.to(dtype), atol=0, rtol=1e-2)


def test_any_memory_layout(compiled):
    maps, rois = torch.randn(2, 8, 9, 9, device=compiled), random_rois(6, 2, 9.0).to(compiled)
    expected = ps_roi_align(maps, rois, 2)
    assert expected.is_contiguous()
    pooled = ps_roi_align(maps.to(memory_format=torch.channels_last), rois, 2)
    assert pooled.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(pooled, expected)


@pytest.mark.parametrize(
    "maps, rois, message",
    [
        ((4, 5, 5), (1, 5), r"input must be \(B, C, H, W\), has 3 dimensions"),
        ((1, 4, 5, 5), (1, 4), r"rois must be \(R, 5\), has"),
        ((1, 6, 5, 5), (1, 5), "input must have a multiple of group_size's 4 channels, has 6"),
    ],
)
def test_rejects_wrong_shapes(implementation, device, maps, rois, message):
    with pytest.raises(RuntimeError, match=message):
        ps_roi_align(torch.zeros(maps, device=device), torch.zeros(rois, device=device), 2)


def test_rejects_an_image_that_is_not_there(implementation):
    with pytest.raises(RuntimeError, match=r"index in the batch and must be in \[0, 2\)"):
        ps_roi_align(torch.zeros(2, 4, 5, 5), torch.tensor([[2.0, 0, 0, 1, 1]]), 2)


@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients(compiled, layout, ratio):
    maps = torch.randn(2, 8, 4, 3, dtype=torch.float64, device=compiled)
    maps = maps.to(memory_format=layout).requires_grad_()
    rois = random_rois(3, 2, 8.0).double().to(compiled)
    nondet = 1e-12 if compiled == "cuda" else 0
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda maps: ps_roi_align(maps, rois, 2, 0.5, ratio), maps, nondet_tol=nondet)


def test_gradient_without_a_binary(implementation, device):
    maps = torch.randn(1, 4, 4, 3, dtype=torch.float64, device=device, requires_grad=True)
    rois = random_rois(2, 1, 8.0).double().to(device)
    nondet = 1e-12 if device == "cuda" else 0
    assert torch.autograd.gradcheck(
        lambda maps: ps_roi_align(maps, rois, 2, 0.5), maps, nondet_tol=nondet
    )


def test_same_bits_for_any_number_of_threads():
    maps, rois = torch.randn(2, 20 * 9, 20, 20, requires_grad=True), random_rois(60, 2, 20.0)
    check_same_bits(lambda: value_and_gradient(ps_roi_align(maps, rois, 3), maps))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_is_a_well_formed_op(compiled, layout):
    maps = torch.randn(2, 8, 6, 7, device=compiled).to(memory_format=layout).requires_grad_()
    rois = random_rois(4, 2, 9.0).to(compiled)
    torch.library.opcheck(torch.ops.segdet.ps_roi_align, (maps, rois, 3, 2, 0.5, 2, 2, 2))
    grad = torch.randn(4, 2, 3, 2, device=compiled).to(memory_format=layout).requires_grad_()
    torch.library.opcheck(
        torch.ops.segdet.ps_roi_align_backward,
        (grad, rois, 2, 8, 6, 7, 0.5, 2, 2, 2, False),
    )


class Pooler(torch.nn.Module):
    def forward(self, maps: Tensor, rois: Tensor) -> Tensor:
        return ps_roi_align(maps * 2, rois, 2, 0.5).mean((2, 3))


def test_compiles_and_exports_without_a_break(compiled):
    maps, rois = torch.randn(2, 8, 6, 7, device=compiled), random_rois(4, 2, 9.0).to(compiled)
    expected = Pooler()(maps, rois)
    for module in (
        torch.compile(Pooler(), fullgraph=True, backend="aot_eager"),
        torch.export.export(Pooler(), (maps, rois)).module(),
    ):
        torch.testing.assert_close(module(maps, rois), expected)
