import pytest
import torch

from segdet.layers import ROIAlign

RAMP = torch.arange(25.0).reshape(1, 1, 5, 5)
ROI = torch.tensor([[0.0, 1, 1, 3, 3]])


@pytest.mark.parametrize(
    "aligned, first_row", [(True, [4.5, 5.0, 5.5, 6.0]), (False, [7.5, 8.0, 8.5, 9.0])]
)
def test_golden_ramp(aligned, first_row, device):
    pooled = ROIAlign(4, 1.0, 0, aligned=aligned).to(device)(RAMP.to(device), ROI.to(device))
    expected = torch.tensor(first_row) + 2.5 * torch.arange(4.0)[:, None]
    torch.testing.assert_close(pooled[0, 0].cpu(), expected)


def test_is_aligned_by_default():
    aligned = ROIAlign(4, 1.0, 0, aligned=True)(RAMP, ROI)
    assert torch.equal(ROIAlign((4, 4), 1.0, 0)(RAMP, ROI), aligned)


def test_scale_maps_pixels_to_cells():
    quarter = ROIAlign(4, 0.25, 0)(RAMP, ROI * torch.tensor([1, 4, 4, 4, 4]))
    torch.testing.assert_close(quarter, ROIAlign(4, 1.0, 0)(RAMP, ROI))


def test_rois_take_the_features_precision():
    double = ROIAlign((2, 3), 1.0, 2)(RAMP.double(), ROI)
    assert double.dtype == torch.float64 and double.shape == (1, 1, 2, 3)


def test_no_regions():
    assert ROIAlign(7, 1.0, 0)(torch.zeros(2, 3, 5, 5), torch.zeros(0, 5)).shape == (0, 3, 7, 7)


def test_refuses_boxes_without_a_batch_index():
    with pytest.raises(ValueError, match=r"rois must be \(R, 5\), have shape \(1, 4\)"):
        ROIAlign(7, 1.0, 0)(RAMP, ROI[:, 1:])


def test_prints_its_settings():
    assert "output_size=7, spatial_scale=0.25, sampling_ratio=2, aligned=True" in repr(
        ROIAlign(7, 0.25, 2)
    )
