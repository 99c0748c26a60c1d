// Position-sensitive ROI pooling and its gradient on CUDA: what a bin takes of which cell. The rest
// is in position_sensitive.cuh.
#include "position_sensitive.cuh"
#include "ps_roi_pool.h"

namespace segdet::ps_roi_pool {
namespace {

// A bin's window on one axis.
template <class T>
struct Cells {
  int64_t begin, end;
  T count;

  __device__ bool tap(int64_t cell, int64_t, Tap<T>& tap) const {
    tap = {cell, cell, T(0)};
    return true;
  }
};

template <class T>
struct Rule {
  static constexpr int kEnds = 1;
  double spatial_scale;
  bool round_pixels;

  __device__ Cells<T> axis(T low, T high, int64_t bins, int64_t bin, int64_t size) const {
    const Axis axis = make_axis(double(low), double(high), spatial_scale, bins, size, round_pixels);
    const Window window = window_of(axis, bin);
    const int64_t cells = window.end - window.begin;
    return {window.begin, window.end, cells > 0 ? T(cells) : T(1)};
  }
};

}  // namespace

Tensor ps_roi_pool_cuda(const Tensor& input, const Tensor& rois, int64_t pooled_height,
                        int64_t pooled_width, double spatial_scale, int64_t group_height,
                        int64_t group_width, bool round_pixels) {
  const auto rule = [&](auto type) { return Rule<decltype(type)>{spatial_scale, round_pixels}; };
  return position_sensitive::pool_on_cuda(rule, input, rois, pooled_height, pooled_width,
                                          group_height, group_width, "ps_roi_pool");
}

Tensor ps_roi_pool_backward_cuda(const Tensor& grad, const Tensor& rois, int64_t batch,
                                 int64_t channels, int64_t height, int64_t width,
                                 double spatial_scale, int64_t group_height, int64_t group_width,
                                 bool round_pixels, bool deterministic) {
  const auto rule = [&](auto type) { return Rule<decltype(type)>{spatial_scale, round_pixels}; };
  return position_sensitive::spread_on_cuda(rule, grad, rois, {batch, channels, height, width},
                                            group_height, group_width, deterministic,
                                            "ps_roi_pool_backward");
}

}  // namespace segdet::ps_roi_pool

SEGDET_CUDA_IMPL(m) {
  m.impl("ps_roi_pool", TORCH_BOX(&segdet::ps_roi_pool::ps_roi_pool_cuda));
  m.impl("ps_roi_pool_backward", TORCH_BOX(&segdet::ps_roi_pool::ps_roi_pool_backward_cuda));
}
