import math

import pytest
import torch
from torch import Tensor

from segdet.ops import roi_align
from tests.ops.pooling import bilinear, random_rois, value_and_gradient
from tests.ops.threads import check_same_bits

NAN, INF = math.nan, math.inf


def roi_align_by_definition(
    maps: Tensor, rois: Tensor, size: tuple[int, int], scale: float, ratio: int, aligned: bool
) -> Tensor:
    """Every sample of every bin, one after the other, in float64."""
    maps = maps.double()
    out = torch.zeros(len(rois), maps.shape[1], *size, dtype=torch.float64)
    for r, (image, *box) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (value * scale - (0.5 if aligned else 0) for value in box)
        bin_h, bin_w = (y2 - y1) / size[0], (x2 - x1) / size[1]
        if not aligned:
            bin_h, bin_w = max(y2 - y1, 1) / size[0], max(x2 - x1, 1) / size[1]
        grid_h = ratio if ratio > 0 else math.ceil(bin_h)
        grid_w = ratio if ratio > 0 else math.ceil(bin_w)
        for py in range(size[0]):
            for px in range(size[1]):
                for iy in range(grid_h):
                    for ix in range(grid_w):
                        y = y1 + (py + (iy + 0.5) / grid_h) * bin_h
                        x = x1 + (px + (ix + 0.5) / grid_w) * bin_w
                        out[r, :, py, px] += bilinear(maps[int(image)], y, x)
                out[r, :, py, px] /= max(grid_h * grid_w, 1)
    return out


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 1, 3])
@pytest.mark.parametrize("size", [(3, 3), (2, 5), (1, 1)])
def test_matches_definition(implementation, device, size, ratio, aligned):
    maps, rois = torch.randn(2, 3, 11, 14), random_rois(12, 2, 45.0)
    out = roi_align(maps.to(device), rois.to(device), size, 0.25, ratio, aligned)
    expected = roi_align_by_definition(maps, rois, size, 0.25, ratio, aligned)
    torch.testing.assert_close(out.cpu().double(), expected, atol=2e-5, rtol=0)


def test_matches_definition_in_float64(implementation, device):
    maps, rois = torch.randn(2, 3, 11, 14).double(), random_rois(12, 2, 45.0).double()
    out = roi_align(maps.to(device), rois.to(device), 3, 0.25)
    expected = roi_align_by_definition(maps, rois, (3, 3), 0.25, 0, True)
    torch.testing.assert_close(out.cpu(), expected, atol=1e-12, rtol=0)


def test_known_values_of_both_rules(implementation):
    maps = torch.arange(25.0).reshape(1, 1, 5, 5)
    rois = torch.tensor([[0.0, 1, 1, 3, 3]])
    aligned = roi_align(maps, rois, 4)[0, 0]
    torch.testing.assert_close(aligned[0], torch.tensor([4.5, 5.0, 5.5, 6.0]))
    torch.testing.assert_close(aligned[:, 0], 4.5 + 2.5 * torch.arange(4.0))
    legacy = roi_align(maps, rois, 4, aligned=False)[0, 0]
    torch.testing.assert_close(legacy[0], torch.tensor([7.5, 8.0, 8.5, 9.0]))


def test_nothing_to_pool(implementation, device):
    maps = torch.randn(2, 3, 5, 5, device=device, requires_grad=True)
    out = roi_align(maps, torch.zeros(0, 5, device=device), (2, 4))
    assert out.shape == (0, 3, 2, 4)
    out.sum().backward()
    assert maps.grad is not None and not maps.grad.any()
    rois = torch.zeros(0, 5, device=device)
    assert roi_align(torch.zeros(0, 3, 5, 5, device=device), rois, 2).shape == (0, 3, 2, 2)
    rois = torch.tensor([[0.0, 1, 1, 3, 3]], device=device)
    assert roi_align(torch.zeros(1, 0, 5, 5, device=device), rois, 2).shape == (1, 0, 2, 2)


@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize(
    "box",
    [
        (100, 100, 120, 120),  # beyond the map
        (-60, -60, -40, -40),
        (NAN, 1, 3, 3),
        (1, 1, NAN, 3),
        (-INF, 1, 3, 3),
        (1, 1, INF, INF),
        (-INF, -INF, INF, INF),
        (1e30, 1e30, 2e30, 2e30),
        (-1e30, -1e30, 1e30, 1e30),
    ],
)
def test_regions_off_the_map_are_zero(implementation, device, box, ratio):
    maps = torch.randn(1, 2, 6, 7, device=device, requires_grad=True)
    rois = torch.tensor([[0.0, *box], [0.0, 1, 1, 4, 4]], device=device)
    out = roi_align(maps, rois, 3, 1.0, ratio)
    assert not out[0].any()
    assert out[1].all()
    out[:1].sum().backward()
    assert maps.grad is not None and not maps.grad.any()


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
def test_inverted_regions(implementation, device, ratio, aligned):
    maps = torch.randn(1, 2, 6, 7)
    boxes = [[5.0, 5, 1, 1], [5, 1, 1, 5], [1, 5, 5, 1], [30, 4, -30, 1], [300, 300, -300, -300]]
    rois = torch.tensor([[0.0, *box] for box in boxes])
    out = roi_align(maps.to(device), rois.to(device), 3, 1.0, ratio, aligned)
    expected = roi_align_by_definition(maps, rois, (3, 3), 1.0, ratio, aligned)
    torch.testing.assert_close(out.cpu().double(), expected, atol=2e-5, rtol=0)


def test_region_without_extent_is_zero_when_aligned_and_adaptive(implementation, device):
    maps = torch.ones(1, 1, 6, 7, device=device)
    rois = torch.tensor([[0.0, 2, 2, 2, 2]], device=device)
    assert not roi_align(maps, rois, 3).any()
    assert roi_align(maps, rois, 3, aligned=False).allclose(torch.ones(1, device=device))
    assert roi_align(maps, rois, 3, sampling_ratio=2).allclose(torch.ones(1, device=device))


def test_region_much_larger_than_the_map_costs_no_more_than_the_map(compiled):
    maps = torch.ones(1, 1, 4, 4, device=compiled)
    rois = torch.tensor([[0.0, -1e6, -1e6, 1e6, 1e6]], device=compiled)
    out = roi_align(maps, rois, 1)  # 4e12 samples, 36 of which meet the map
    torch.testing.assert_close(out.item(), 36 / 4e12, rtol=0.2, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(implementation, device, dtype):
    maps, rois = torch.randn(2, 3, 11, 14).to(dtype), random_rois(9, 2, 45.0)
    rois[:, 1:] += 0.003  # less than the narrow types resolve
    out = roi_align(maps.to(device), rois.to(device), 3, 0.25)
    assert out.dtype == dtype
    wide = roi_align_by_definition(maps, rois, (3, 3), 0.25, 0, True)
    torch.testing.assert_close(out.cpu(), wide.to(dtype), atol=0, rtol=1e-2)


def test_autocast_keeps_the_features_type_and_digits(implementation, device):
    maps, rois = torch.randn(1, 3, 8, 8, device=device), random_rois(4, 1, 8.0).to(device)
    expected = roi_align(maps, rois, 3)
    with torch.autocast(device, torch.bfloat16):
        assert roi_align(maps.bfloat16(), rois, 3).dtype == torch.bfloat16
        torch.testing.assert_close(roi_align(maps, rois, 3), expected, atol=0, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("channels", [1, 3, 16, 83])  # alone, in part and in whole registers
def test_channels_last_stays_and_gives_the_same(compiled, channels, ratio, dtype):
    maps = torch.randn(2, channels, 9, 12, device=compiled, dtype=dtype, requires_grad=True)
    rois = random_rois(7, 2, 30.0).to(compiled)
    last = maps.detach().to(memory_format=torch.channels_last).requires_grad_()
    out, out_last = (roi_align(leaf, rois, (3, 2), 0.25, ratio) for leaf in (maps, last))
    wanted = out.to(memory_format=torch.channels_last)
    assert out.is_contiguous() and out_last.stride() == (out if channels == 1 else wanted).stride()
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 1e-2)
    torch.testing.assert_close(out_last, out, atol=tolerance, rtol=tolerance)
    grad = torch.randn_like(out)
    out.backward(grad)
    out_last.backward(grad.to(memory_format=torch.channels_last))
    assert maps.grad is not None and last.grad is not None and last.grad.dtype == dtype
    assert maps.grad.is_contiguous() and last.grad.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last.grad, maps.grad, atol=tolerance, rtol=tolerance)


def test_any_memory_layout(implementation, device):
    maps, rois = torch.randn(2, 40, 9, 9, device=device), random_rois(6, 2, 9.0).to(device)
    expected = roi_align(maps, rois, 3)
    last = torch.randn(2, 9, 12, 50, device=device).permute(0, 3, 1, 2)  # a part of channels-last
    last = last[:, 5:45, :, 2:11].copy_(maps)
    wide = torch.randn(2, 40, 9, 12, device=device)[..., 2:11].copy_(maps)
    flipped = maps.transpose(2, 3).contiguous().transpose(2, 3)
    for strided in (last, wide, flipped):
        torch.testing.assert_close(roi_align(strided, rois, 3), expected)
    torch.testing.assert_close(
        roi_align(maps[:1].expand(2, -1, -1, -1), rois, 3)[::2], expected[::2]
    )
    torch.testing.assert_close(roi_align(maps, rois.T.contiguous().T, 3), expected)


def test_few_regions_of_a_large_map_are_copied_alone(compiled):
    maps = torch.randn(1, 35, 40, 50, device=compiled)
    rois = torch.tensor([[0.0, 3, 4, 9, 11], [0.0, 30, 20, 49, 28]], device=compiled)
    everywhere = torch.tensor([[0.0, 0, 0, 50, 40]], device=compiled)
    expected = roi_align(maps, torch.cat([rois, everywhere]), 4)[:2]
    torch.testing.assert_close(roi_align(maps, rois, 4), expected, atol=0, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_more_than_2_to_the_31_elements(compiled, memory_format):
    shape = (1, 2, (1 << 15) + 8, 1 << 15)  # on the CPU only pages that are touched take memory
    maps = torch.empty(shape, dtype=torch.float16, device=compiled, memory_format=memory_format)
    corner = torch.arange(4.0, device=compiled)
    maps[:, 1, -4:, -4:] = corner
    rois = torch.tensor([[0.0, shape[3] - 4, shape[2] - 4, shape[3], shape[2]]], device=compiled)
    out = roi_align(maps, rois, (1, 4))
    torch.testing.assert_close(out[0, 1, 0], corner.half())


@pytest.mark.parametrize(
    "maps, rois, message",
    [
        ((3, 5, 5), (1, 5), r"input must be \(B, C, H, W\), has 3 dimensions"),
        ((1, 3, 5, 5), (1, 4), r"rois must be \(R, 5\), has"),
        ((1, 3, 5, 5), (5,), r"rois must be \(R, 5\), has"),
    ],
)
def test_rejects_wrong_shapes(implementation, device, maps, rois, message):
    with pytest.raises(RuntimeError, match=message):
        roi_align(torch.zeros(maps, device=device), torch.zeros(rois, device=device), 2)


@pytest.mark.parametrize("index", [2.0, -1.0, NAN, INF])
def test_rejects_an_image_that_is_not_there(implementation, index):
    with pytest.raises(RuntimeError, match=r"index in the batch and must be in \[0, 2\)"):
        roi_align(torch.zeros(2, 3, 5, 5), torch.tensor([[index, 0, 0, 1, 1]]), 2)


@pytest.mark.cuda
def test_cuda_marks_an_image_that_is_not_there():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    rois = torch.tensor([[2.0, 0, 0, 1, 1]], device="cuda")
    assert roi_align(torch.zeros(2, 3, 5, 5, device="cuda"), rois, 2).isnan().all()


def test_rejects_what_it_cannot_compute(compiled):
    maps, rois = torch.zeros(1, 3, 5, 5, device=compiled), torch.zeros(1, 5, device=compiled)
    with pytest.raises(RuntimeError, match="input must be floating point, is Long"):
        roi_align(maps.long(), rois, 2)
    with pytest.raises(RuntimeError, match="rois must be floating point, is Int"):
        roi_align(maps, rois.int(), 2)
    with pytest.raises(RuntimeError, match=r"output_size must be positive, is \(0, 2\)"):
        roi_align(maps, rois, (0, 2))
    with pytest.raises(RuntimeError, match="at least one cell, has height 0 and width 5"):
        roi_align(maps[:, :, :0], rois, 2)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
def test_gradient(implementation, device, ratio, aligned):
    maps = torch.randn(2, 1, 4, 5, dtype=torch.float64, device=device, requires_grad=True)
    rois = random_rois(4, 2, 8.0).double().to(device)

    def pooled(maps: Tensor) -> Tensor:
        return roi_align(maps, rois, (2, 1), 0.5, ratio, aligned)

    assert torch.autograd.gradcheck(pooled, maps, nondet_tol=1e-12 if device == "cuda" else 0)


def test_second_gradient(compiled):
    maps = torch.randn(1, 1, 3, 4, dtype=torch.float64, device=compiled, requires_grad=True)
    rois = random_rois(2, 1, 6.0).double().to(compiled)
    assert torch.autograd.gradgradcheck(lambda maps: roi_align(maps, rois, 2, 0.5), maps)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_same_bits_for_any_number_of_threads(memory_format):
    maps, rois = torch.randn(2, 70, 20, 20), random_rois(60, 2, 20.0)
    maps = maps.to(memory_format=memory_format).requires_grad_()
    check_same_bits(lambda: value_and_gradient(roi_align(maps, rois, 7), maps))


def test_deterministic_gradient(compiled):
    maps = torch.randn(1, 3, 9, 9, device=compiled, requires_grad=True)
    out = roi_align(maps, random_rois(20, 1, 9.0).to(compiled), 3)
    grad = torch.randn_like(out)
    (expected,) = torch.autograd.grad(out, maps, grad, retain_graph=True)
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (torch.autograd.grad(out, maps, grad, retain_graph=True)[0] for _ in "ab")
        grad[0] = INF
        (broken,) = torch.autograd.grad(out, maps, grad)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, expected, atol=1e-5, rtol=1e-5)
    assert not broken.isfinite().all()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_is_a_well_formed_op(compiled, memory_format):
    maps = torch.randn(2, 3, 8, 9, device=compiled).to(memory_format=memory_format)
    rois = random_rois(4, 2, 9.0).to(compiled)
    args = (maps.requires_grad_(), rois, 2, 3, 0.5, 0, True)
    torch.library.opcheck(torch.ops.segdet.roi_align, args)
    grad = torch.randn(4, 3, 2, 3, device=compiled).to(memory_format=memory_format).requires_grad_()
    torch.library.opcheck(
        torch.ops.segdet.roi_align_backward, (grad, rois, 2, 3, 8, 9, 0.5, 0, True, False)
    )


@pytest.mark.slow
def test_compiles_to_one_graph(compiled):
    pool = torch.compile(roi_align, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in (8, 11):
        maps = torch.randn(2, 3, size, 9, device=compiled, requires_grad=True)
        rois = random_rois(size, 2, 9.0).to(compiled)
        (expected,) = torch.autograd.grad(roi_align(maps, rois, 2).square().sum(), maps)
        (grad,) = torch.autograd.grad(pool(maps, rois, 2).square().sum(), maps)
        torch.testing.assert_close(grad, expected)


def test_exports(compiled):
    class Pooler(torch.nn.Module):
        def forward(self, maps: Tensor, rois: Tensor) -> Tensor:
            return roi_align(maps, rois, 2).relu()

    args = (torch.randn(2, 3, 8, 9, device=compiled), random_rois(4, 2, 9.0).to(compiled))
    exported = torch.export.export(Pooler(), args).module()
    torch.testing.assert_close(exported(*args), Pooler()(*args))


def test_counts_samples_as_the_original(compiled):
    """Whether a bin of nearly two cells takes 2 or 3 samples hangs on float32's rounding."""
    torchvision_ops = pytest.importorskip("torchvision.ops")
    corner = torch.rand(300, 2) * 60
    rois = torch.cat([torch.zeros(300, 1), corner, corner + 56], dim=1).to(compiled)
    maps = torch.randn(1, 2, 32, 32, device=compiled)
    expected = torchvision_ops.roi_align(maps, rois, 7, 0.25, 0, aligned=True)
    torch.testing.assert_close(roi_align(maps, rois, 7, 0.25, 0, True), expected, atol=1e-4, rtol=0)
