from torch import Tensor, nn

from segdet import ops


class ROIAlignRotated(nn.Module):
    """Average of bilinear samples in each cell of a grid over each rotated region.

    Source: detectron2's layer of this name, with its sign of the angle.

    Args:
        output_size: (height, width) of the grid, or its side.
        spatial_scale: cells of the feature map per pixel of the regions.
        sampling_ratio: samples per cell and axis; 0 takes ceil(region side / grid side).
    """

    def __init__(
        self, output_size: int | tuple[int, int], spatial_scale: float, sampling_ratio: int
    ) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        """Pool regions.

        Args:
            input: (B, C, H, W).
            rois: (R, 6): index into the batch, then centre x, centre y, width and height in pixels
                and the angle in degrees, counter-clockwise.

        Returns:
            (R, C, height, width) of the grid.
        """
        if rois.ndim != 2 or rois.shape[1] != 6:
            raise ValueError(f"rois must be (R, 6), have shape {tuple(rois.shape)}")
        return ops.roi_align_rotated(
            input, rois, self.output_size, self.spatial_scale, self.sampling_ratio
        )

    def extra_repr(self) -> str:
        """The settings."""
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}"
        )
