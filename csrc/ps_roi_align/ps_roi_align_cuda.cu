// Position-sensitive RoIAlign and its gradient on CUDA: what a bin takes of which cell. The rest is
// in ps_roi_pool/position_sensitive.cuh.
#include "../ps_roi_pool/position_sensitive.cuh"
#include "../roi_align/roi_align.h"

namespace segdet::ps_roi_align {
namespace {

// A bin's samples on one axis.
template <class T>
struct Samples {
  Axis<T> axis;
  int64_t bin, begin, end;
  T count;

  __device__ bool tap(int64_t sample, int64_t size, Tap<T>& tap) const {
    return tap_at(sample_position(axis, bin, sample), size, tap);
  }
};

template <class T>
struct Rule {
  static constexpr int kEnds = 2;
  double spatial_scale;
  int64_t sampling_ratio;

  __device__ Samples<T> axis(T low, T high, int64_t bins, int64_t bin, int64_t size) const {
    const Axis<T> axis =
        make_axis<T>(low, high, T(spatial_scale), /*aligned=*/true, bins, sampling_ratio);
    const SampleRange range = samples_within(axis, bin, size);
    return {axis, bin, range.begin, range.end, axis.samples > T(1) ? axis.samples : T(1)};
  }
};

}  // namespace

Tensor ps_roi_align_cuda(const Tensor& input, const Tensor& rois, int64_t pooled_height,
                         int64_t pooled_width, double spatial_scale, int64_t group_height,
                         int64_t group_width, int64_t sampling_ratio) {
  const auto rule = [&](auto type) { return Rule<decltype(type)>{spatial_scale, sampling_ratio}; };
  return position_sensitive::pool_on_cuda(rule, input, rois, pooled_height, pooled_width,
                                          group_height, group_width, "ps_roi_align");
}

Tensor ps_roi_align_backward_cuda(const Tensor& grad, const Tensor& rois, int64_t batch,
                                  int64_t channels, int64_t height, int64_t width,
                                  double spatial_scale, int64_t group_height, int64_t group_width,
                                  int64_t sampling_ratio, bool deterministic) {
  const auto rule = [&](auto type) { return Rule<decltype(type)>{spatial_scale, sampling_ratio}; };
  return position_sensitive::spread_on_cuda(rule, grad, rois, {batch, channels, height, width},
                                            group_height, group_width, deterministic,
                                            "ps_roi_align_backward");
}

}  // namespace segdet::ps_roi_align

SEGDET_CUDA_IMPL(m) {
  m.impl("ps_roi_align", TORCH_BOX(&segdet::ps_roi_align::ps_roi_align_cuda));
  m.impl("ps_roi_align_backward", TORCH_BOX(&segdet::ps_roi_align::ps_roi_align_backward_cuda));
}
