from torch import Tensor, nn

from segdet import ops


class ROIAlign(nn.Module):
    """Average of bilinear samples in each cell of a grid over each region.

    Source: Mask R-CNN (arXiv:1703.06870), section 3, "RoIAlign".

    Args:
        output_size: (height, width) of the grid, or its side.
        spatial_scale: cells of the feature map per pixel of the regions.
        sampling_ratio: samples per cell and axis; 0 takes ceil(region side / grid side).
        aligned: shift by half a cell, so that pixel centres lie at +0.5; False is the older
            rule, which also stretches regions to at least one cell.
    """

    def __init__(
        self,
        output_size: int | tuple[int, int],
        spatial_scale: float,
        sampling_ratio: int,
        aligned: bool = True,
    ) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        """Pool regions.

        Args:
            input: (B, C, H, W).
            rois: (R, 5): index into the batch, then XYXY in pixels.

        Returns:
            (R, C, height, width) of the grid.
        """
        if rois.ndim != 2 or rois.shape[1] != 5:
            raise ValueError(f"rois must be (R, 5), have shape {tuple(rois.shape)}")
        return ops.roi_align(
            input,
            rois,
            self.output_size,
            self.spatial_scale,
            self.sampling_ratio,
            self.aligned,
        )

    def extra_repr(self) -> str:
        """The settings."""
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}, aligned={self.aligned}"
        )
