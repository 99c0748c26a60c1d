// Position-sensitive RoIAlign and its gradient on the CPU: what a bin takes of which cell. The rest
// is in ps_roi_pool/position_sensitive.cpp.
#include "../ps_roi_pool/position_sensitive.h"

namespace segdet::ps_roi_align {
namespace {

// The rule for one axis of a region, as position_sensitive::make_regions wants it.
auto samples(double spatial_scale, int64_t sampling_ratio) {
  return [=](double low, double high, int64_t bins, int64_t size, auto& terms) {
    using T = typename std::decay_t<decltype(terms)>::Number;  // of low and high, too
    const auto axis =
        make_wide_axis(T(low), T(high), spatial_scale, /*aligned=*/true, bins, sampling_ratio);
    for (int64_t bin = 0; bin < bins; ++bin) {
      const SampleRange range = samples_within(axis, bin, size);
      for (int64_t i = range.begin; i < range.end; ++i) {
        Tap<double> tap;
        if (!tap_at(sample_position(axis, bin, i), size, tap)) continue;
        terms.add(tap.low, 1 - tap.fraction);
        if (tap.high > tap.low) terms.add(tap.high, tap.fraction);
      }
      terms.end_bin(std::max(axis.samples, 1.0));
    }
  };
}

}  // namespace

// input (B, C * group, H, W), rois (R, 5) of (image, x1, y1, x2, y2) in pixels -> (R, C, h, w).
Tensor ps_roi_align_cpu(const Tensor& input, const Tensor& rois, int64_t pooled_height,
                        int64_t pooled_width, double spatial_scale, int64_t group_height,
                        int64_t group_width, int64_t sampling_ratio) {
  return position_sensitive::pool_by(samples(spatial_scale, sampling_ratio), input, rois,
                                     pooled_height, pooled_width, group_height, group_width,
                                     "ps_roi_align");
}

// grad (R, C, h, w) of the output -> gradient (B, C * group, H, W) of the input.
Tensor ps_roi_align_backward_cpu(const Tensor& grad, const Tensor& rois, int64_t batch,
                                 int64_t channels, int64_t height, int64_t width,
                                 double spatial_scale, int64_t group_height, int64_t group_width,
                                 int64_t sampling_ratio, bool /*deterministic*/) {
  return position_sensitive::spread_by(samples(spatial_scale, sampling_ratio), grad, rois,
                                       {batch, channels, height, width}, group_height, group_width,
                                       "ps_roi_align_backward");
}

}  // namespace segdet::ps_roi_align

STABLE_TORCH_LIBRARY_FRAGMENT(segdet, m) {
  m.def(
      "ps_roi_align(Tensor input, Tensor rois, SymInt pooled_height, SymInt pooled_width, float "
      "spatial_scale, SymInt group_height, SymInt group_width, int sampling_ratio) -> Tensor");
  m.def(
      "ps_roi_align_backward(Tensor grad, Tensor rois, SymInt batch, SymInt channels, SymInt "
      "height, "
      "SymInt width, float spatial_scale, SymInt group_height, SymInt group_width, int "
      "sampling_ratio, bool deterministic) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(segdet, CPU, m) {
  m.impl("ps_roi_align", TORCH_BOX(&segdet::ps_roi_align::ps_roi_align_cpu));
  m.impl("ps_roi_align_backward", TORCH_BOX(&segdet::ps_roi_align::ps_roi_align_backward_cpu));
}
