import itertools
import math

import pytest
import torch
from torch import Tensor

from segdet.ops import ps_roi_pool
from tests.ops.pooling import random_rois, value_and_gradient
from tests.ops.threads import check_same_bits

NAN, INF = math.nan, math.inf


def c_round(value: float) -> float:
    return math.copysign(math.floor(abs(value) + 0.5), value)


def windows_by_definition(
    low: float, high: float, bins: int, size: int, scale: float, rounding: str
) -> list[range]:
    if rounding == "pixels":
        start, stop, limit = c_round(low) * scale, (c_round(high) + 1) * scale, size
        extent = max(stop - start, 0.1)
    else:
        start, stop, limit = c_round(low * scale), c_round(high * scale), size - 1
        extent = max(stop - start, 1)
    ends = [start + k * (extent / bins) for k in range(bins + 1)]
    return [
        range(*(min(max(end, 0), limit) for end in (math.floor(a), math.ceil(b))))
        for a, b in itertools.pairwise(ends)
    ]


def pool_by_definition(
    maps: Tensor, rois: Tensor, size: tuple[int, int], scale: float, group: int, rounding: str
) -> Tensor:
    maps, rois = maps.double(), rois.double()
    groups = (group, group) if group else size
    channels = maps.shape[1] // groups[0] // groups[1]
    out = torch.zeros(len(rois), channels, *size, dtype=torch.float64)
    for r, (image, x1, y1, x2, y2) in enumerate(rois.tolist()):
        rows = windows_by_definition(y1, y2, size[0], maps.shape[2], scale, rounding)
        columns = windows_by_definition(x1, x2, size[1], maps.shape[3], scale, rounding)
        for i, ys in enumerate(rows):
            for j, xs in enumerate(columns):
                for c in range(channels):
                    gi, gj = i * groups[0] // size[0], j * groups[1] // size[1]
                    plane = maps[int(image), (c * groups[0] + gi) * groups[1] + gj]
                    cells = [plane[y, x] for y in ys for x in xs]
                    out[r, c, i, j] = sum(cells) / max(len(cells), 1)
    return out


def half_rois(n: int, images: int, side: float) -> Tensor:
    """(n, 5): every other one has its corners at halves of a pixel."""
    rois = random_rois(n, images, side)
    rois[::2, 1:] = rois[::2, 1:].mul(2).round() / 2
    return rois


@pytest.mark.parametrize("rounding", ["pixels", "cells"])
@pytest.mark.parametrize("size, group", [((3, 3), None), ((2, 3), None), ((5, 4), 2), ((2, 2), 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_matches_definition(implementation, device, dtype, size, group, rounding):
    count = group * group if group else size[0] * size[1]
    maps, rois = torch.randn(2, 2 * count, 11, 9).to(dtype), half_rois(12, 2, 40.0).to(dtype)
    out = ps_roi_pool(maps.to(device), rois.to(device), size, 0.25, group, rounding)
    expected = pool_by_definition(maps, rois, size, 0.25, group, rounding)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(out.cpu().double(), expected, atol=tolerance, rtol=0)


def test_more_channels_than_one_vector_holds(compiled):
    maps, rois = torch.randn(2, 37 * 4, 6, 7), half_rois(5, 2, 24.0)
    expected = pool_by_definition(maps, rois, (2, 2), 0.25, None, "pixels").float()
    for layout in (torch.contiguous_format, torch.channels_last):
        out = ps_roi_pool(maps.to(compiled, memory_format=layout), rois.to(compiled), 2, 0.25)
        torch.testing.assert_close(out.cpu(), expected, atol=1e-5, rtol=0)


def test_known_values_of_both_rules(implementation, device):
    maps = torch.arange(16.0, device=device).reshape(1, 1, 4, 4)
    rois = torch.tensor([[0.0, 1, 0, 3, 3]], device=device)
    assert ps_roi_pool(maps, rois, 1).item() == 8  # columns 1 to 3
    assert ps_roi_pool(maps, rois, 1, rounding="cells").item() == 5.5  # 1 and 2, no last row
    half = torch.tensor([[0.0, 0.5, 0, 2.5, 0]], device=device)  # to 1 and 3
    assert ps_roi_pool(maps, half, 1).item() == 2


@pytest.mark.parametrize("rounding", ["pixels", "cells"])
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
        (1e30, 1e30, 2e30, 2e30),
    ],
)
def test_regions_off_the_map_are_zero(implementation, device, box, rounding):
    maps = torch.ones(1, 8, 6, 7, device=device, requires_grad=True)
    rois = torch.tensor([[0.0, *box], [0.0, 1, 1, 4, 4]], device=device)
    out = ps_roi_pool(maps, rois, 2, rounding=rounding)
    assert not out[0].any()
    assert out[1].eq(1).all()
    out[:1].sum().backward()
    assert maps.grad is not None and not maps.grad.any()


@pytest.mark.parametrize("rounding", ["pixels", "cells"])
def test_regions_turned_inside_out_are_as_small_as_can_be(implementation, device, rounding):
    maps = torch.ones(1, 4, 6, 7, device=device)
    rois = torch.tensor([[0.0, 4, 4, 1, 1]], device=device)
    assert ps_roi_pool(maps, rois, 2, rounding=rounding).eq(1).all()


def test_nothing_to_pool(implementation, device):
    maps = torch.randn(2, 8, 5, 5, device=device, requires_grad=True)
    out = ps_roi_pool(maps, torch.zeros(0, 5, device=device), 2)
    assert out.shape == (0, 2, 2, 2)
    out.sum().backward()
    assert maps.grad is not None and not maps.grad.any()
    rois = torch.zeros(1, 5, device=device)
    assert ps_roi_pool(torch.zeros(1, 0, 5, 5, device=device), rois, 2).shape == (1, 0, 2, 2)
    none = ps_roi_pool(torch.zeros(0, 8, 5, 5, device=device), rois[:0], 2)
    assert none.shape == (0, 2, 2, 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_half_precision_is_computed_in_float32(implementation, device, dtype, layout):
    maps = torch.randn(2, 8, 11, 9, device=device).to(dtype, memory_format=layout)
    maps.requires_grad_()
    rois = half_rois(9, 2, 40.0).to(device) + 0.003  # less than the narrow types resolve
    wide = maps.detach().float().requires_grad_()
    out, expected = ps_roi_pool(maps, rois, 2, 0.25), ps_roi_pool(wide, rois, 2, 0.25)
    torch.testing.assert_close(out, expected.to(dtype), atol=0, rtol=1e-2)
    upstream = torch.randn_like(out)
    (grad,) = torch.autograd.grad(out, maps, upstream)
    (expected,) = torch.autograd.grad(expected, wide, upstream.float())
    torch.testing.assert_close(grad, expected.to(dtype), atol=2e-2, rtol=2e-2)


def test_autocast_changes_nothing(implementation, device):
    maps, rois = torch.randn(1, 4, 8, 8, device=device), half_rois(4, 1, 8.0).to(device)
    expected = ps_roi_pool(maps, rois, 2)
    with torch.autocast(device, torch.bfloat16):
        assert torch.equal(ps_roi_pool(maps, rois, 2), expected)
        assert ps_roi_pool(maps.bfloat16(), rois, 2).dtype == torch.bfloat16


def test_any_memory_layout(compiled):
    maps, rois = torch.randn(2, 8, 9, 9, device=compiled), half_rois(6, 2, 9.0).to(compiled)
    expected = ps_roi_pool(maps, rois, 2)
    assert expected.is_contiguous()
    channels_last = maps.to(memory_format=torch.channels_last)
    pooled = ps_roi_pool(channels_last, rois.T.contiguous().T, 2)
    assert pooled.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(pooled, expected)
    strided = torch.randn(2, 8, 18, 27, device=compiled)[:, :, ::2, ::3]
    torch.testing.assert_close(
        ps_roi_pool(strided, rois, 2), ps_roi_pool(strided.contiguous(), rois, 2)
    )


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
        ps_roi_pool(torch.zeros(maps, device=device), torch.zeros(rois, device=device), 2)


@pytest.mark.parametrize("index", [2.0, -1.0, NAN, INF])
def test_rejects_an_image_that_is_not_there(implementation, index):
    with pytest.raises(RuntimeError, match=r"index in the batch and must be in \[0, 2\)"):
        ps_roi_pool(torch.zeros(2, 4, 5, 5), torch.tensor([[index, 0, 0, 1, 1]]), 2)


@pytest.mark.cuda
def test_cuda_marks_an_image_that_is_not_there():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    rois = torch.tensor([[2.0, 0, 0, 1, 1]], device="cuda")
    assert ps_roi_pool(torch.zeros(2, 4, 5, 5, device="cuda"), rois, 2).isnan().all()


def test_rejects_what_it_cannot_compute(compiled):
    maps, rois = torch.zeros(1, 4, 5, 5, device=compiled), torch.zeros(1, 5, device=compiled)
    with pytest.raises(RuntimeError, match="input must be floating point, is Long"):
        ps_roi_pool(maps.long(), rois, 2)
    with pytest.raises(RuntimeError, match=r"output_size must be positive, is \(0, 2\)"):
        ps_roi_pool(maps, rois, (0, 2), group_size=2)
    with pytest.raises(RuntimeError, match=r"group_size must be positive, is \(0, 0\)"):
        ps_roi_pool(maps, rois, 2, group_size=0)
    with pytest.raises(RuntimeError, match="at least one cell, has height 0 and width 5"):
        ps_roi_pool(maps[:, :, :0], rois, 2)
    with pytest.raises(ValueError, match='rounding must be "pixels" or "cells", is \'floor\''):
        ps_roi_pool(maps, rois, 2, rounding="floor")


@pytest.mark.parametrize("rounding", ["pixels", "cells"])
def test_gradient(implementation, device, rounding):
    maps = torch.randn(2, 4, 4, 3, dtype=torch.float64, device=device, requires_grad=True)
    rois = half_rois(4, 2, 8.0).double().to(device)

    def pooled(maps: Tensor) -> Tensor:
        return ps_roi_pool(maps, rois, (3, 2), 0.5, 2, rounding)

    assert torch.autograd.gradcheck(pooled, maps, nondet_tol=1e-12 if device == "cuda" else 0)


def test_second_gradient_channels_last(compiled):
    maps = torch.randn(2, 8, 4, 3, dtype=torch.float64, device=compiled)
    maps = maps.to(memory_format=torch.channels_last).requires_grad_()
    rois = half_rois(4, 2, 8.0).double().to(compiled)
    nondet = 1e-12 if compiled == "cuda" else 0
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda maps: ps_roi_pool(maps, rois, 2, 0.5), maps, nondet_tol=nondet)


def test_same_bits_for_any_number_of_threads():
    maps, rois = torch.randn(2, 20 * 9, 20, 20, requires_grad=True), half_rois(60, 2, 20.0)
    check_same_bits(lambda: value_and_gradient(ps_roi_pool(maps, rois, 7, group_size=3), maps))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_is_a_well_formed_op(compiled, layout):
    maps = torch.randn(2, 8, 6, 7, device=compiled).to(memory_format=layout).requires_grad_()
    rois = half_rois(4, 2, 9.0).to(compiled)
    torch.library.opcheck(torch.ops.segdet.ps_roi_pool, (maps, rois, 3, 2, 0.5, 2, 2, True))
    grad = torch.randn(4, 2, 3, 2, device=compiled).to(memory_format=layout).requires_grad_()
    torch.library.opcheck(
        torch.ops.segdet.ps_roi_pool_backward,
        (grad, rois, 2, 8, 6, 7, 0.5, 2, 2, True, False),
    )


class Pooler(torch.nn.Module):
    def forward(self, maps: Tensor, rois: Tensor) -> Tensor:
        return ps_roi_pool(maps * 2, rois, 4, 0.5, group_size=2).mean((2, 3))


def test_compiles_and_exports_without_a_break(compiled):
    maps, rois = torch.randn(2, 8, 6, 7, device=compiled), half_rois(4, 2, 9.0).to(compiled)
    expected = Pooler()(maps, rois)
    for module in (
        torch.compile(Pooler(), fullgraph=True, backend="aot_eager"),
        torch.export.export(Pooler(), (maps, rois)).module(),
    ):
        torch.testing.assert_close(module(maps, rois), expected)
