// Position-sensitive ROI pooling and its gradient on the CPU: what a bin takes of which cell. The
// rest is in position_sensitive.cpp.
#include "ps_roi_pool.h"

namespace segdet::ps_roi_pool {
namespace {

// The rule for one axis of a region, as position_sensitive::make_regions wants it.
auto windows(double spatial_scale, bool round_pixels) {
  return [=](double low, double high, int64_t bins, int64_t size, auto& terms) {
    const Axis axis = make_axis(low, high, spatial_scale, bins, size, round_pixels);
    for (int64_t bin = 0; bin < bins; ++bin) {
      const Window window = window_of(axis, bin);
      for (int64_t cell = window.begin; cell < window.end; ++cell) terms.add(cell, 1);
      terms.end_bin(double(std::max<int64_t>(window.end - window.begin, 1)));
    }
  };
}

}  // namespace

// input (B, C * group, H, W), rois (R, 5) of (image, x1, y1, x2, y2) in pixels -> (R, C, h, w).
Tensor ps_roi_pool_cpu(const Tensor& input, const Tensor& rois, int64_t pooled_height,
                       int64_t pooled_width, double spatial_scale, int64_t group_height,
                       int64_t group_width, bool round_pixels) {
  return position_sensitive::pool_by(windows(spatial_scale, round_pixels), input, rois,
                                     pooled_height, pooled_width, group_height, group_width,
                                     "ps_roi_pool");
}

// grad (R, C, h, w) of the output -> gradient (B, C * group, H, W) of the input.
Tensor ps_roi_pool_backward_cpu(const Tensor& grad, const Tensor& rois, int64_t batch,
                                int64_t channels, int64_t height, int64_t width,
                                double spatial_scale, int64_t group_height, int64_t group_width,
                                bool round_pixels, bool /*deterministic*/) {
  return position_sensitive::spread_by(windows(spatial_scale, round_pixels), grad, rois,
                                       {batch, channels, height, width}, group_height, group_width,
                                       "ps_roi_pool_backward");
}

}  // namespace segdet::ps_roi_pool

STABLE_TORCH_LIBRARY_FRAGMENT(segdet, m) {
  m.def(
      "ps_roi_pool(Tensor input, Tensor rois, SymInt pooled_height, SymInt pooled_width, float "
      "spatial_scale, SymInt group_height, SymInt group_width, bool round_pixels) -> Tensor");
  m.def(
      "ps_roi_pool_backward(Tensor grad, Tensor rois, SymInt batch, SymInt channels, SymInt "
      "height, "
      "SymInt width, float spatial_scale, SymInt group_height, SymInt group_width, bool "
      "round_pixels, bool deterministic) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(segdet, CPU, m) {
  m.impl("ps_roi_pool", TORCH_BOX(&segdet::ps_roi_pool::ps_roi_pool_cpu));
  m.impl("ps_roi_pool_backward", TORCH_BOX(&segdet::ps_roi_pool::ps_roi_pool_backward_cpu));
}
