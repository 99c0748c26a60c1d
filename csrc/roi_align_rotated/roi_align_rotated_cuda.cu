// RoIAlign of rotated regions and its gradient on CUDA: one thread per bin and channel, which walks
// over the bin's samples.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "../cuda.cuh"
#include "../scatter.cuh"
#include "roi_align_rotated.h"

namespace segdet::roi_align_rotated {
namespace {

struct Pooling {
  int64_t batch, channels, height, width, pooled_height, pooled_width;
  double spatial_scale;
  int64_t sampling_ratio;
  bool channels_last;  // order of the bins' indices: that of their memory
};

// The bin and channel that a thread works on.
struct BinIndex {
  int64_t region, channel, y, x;
};

__device__ inline BinIndex bin_index(int64_t i, const Pooling& in) {
  const int64_t c = in.channels, h = in.pooled_height, w = in.pooled_width;
  if (in.channels_last) return {i / c / w / h, i % c, i / c / w % h, i / c % w};
  return {i / w / h / c, i / w / h % c, i / w % h, i % w};
}

// Calls visit(offset in the map, weight) for all that a bin takes; false: there is no such image.
template <class T, class Map, class Visit>
__device__ bool visit_cells(const BinIndex& bin, const T* rois, const Pooling& in, const Map& map,
                            const Visit& visit) {
  const T* roi = rois + 6 * bin.region;
  if (!(roi[0] >= T(0) && roi[0] < T(in.batch))) return false;
  const int64_t image = int64_t(roi[0]);
  const auto region = make_region<T>(roi, kFarthest<T>, T(in.spatial_scale), in.sampling_ratio,
                                     in.pooled_height, in.pooled_width, in.height, in.width);
  const SampleRange rows = samples_beside(region.map_y, region.y, bin.y);
  const SampleRange columns = samples_beside(region.map_x, region.x, bin.x);
  const T share = T(1) / sample_count(region);
  for (int64_t iy = rows.begin; iy < rows.end; ++iy) {
    for (int64_t ix = columns.begin; ix < columns.end; ++ix) {
      Tap<T> y, x;
      if (!taps_at(region, sample_position(region.y, bin.y, iy),
                   sample_position(region.x, bin.x, ix), in.height, in.width, y, x))
        continue;
      const T above = (1 - y.fraction) * share, below = y.fraction * share;
      visit(map.offset(image, bin.channel, y.low, x.low), (1 - x.fraction) * above);
      visit(map.offset(image, bin.channel, y.low, x.high), x.fraction * above);
      visit(map.offset(image, bin.channel, y.high, x.low), (1 - x.fraction) * below);
      visit(map.offset(image, bin.channel, y.high, x.high), x.fraction * below);
    }
  }
  return true;
}

template <class In, class T>
__global__ void pool_kernel(FeatureMap<const In> input, const T* rois, Pooling in, int64_t total,
                            FeatureMap<In> out) {
  for (int64_t i = thread_index(); i < total; i += thread_count()) {
    const BinIndex bin = bin_index(i, in);
    T sum = 0;
    const bool exists = visit_cells(
        bin, rois, in, input, [&](int64_t cell, T weight) { sum += weight * T(input.data[cell]); });
    out.at(bin.region, bin.channel, bin.y, bin.x) = exists ? In(sum) : In(nanf(""));
  }
}

template <class T, class Sum>
__global__ void spread_kernel(FeatureMap<const T> grad, const T* rois, Pooling in, int64_t total,
                              FeatureMap<T> out, Sum sum) {
  for (int64_t i = thread_index(); i < total; i += thread_count()) {
    const BinIndex bin = bin_index(i, in);
    const T value = grad.at(bin.region, bin.channel, bin.y, bin.x);
    visit_cells(bin, rois, in, out, [&](int64_t cell, T weight) { sum.add(cell, weight * value); });
  }
}

template <class In, class T>
void launch_pool(const Tensor& input, const Tensor& rois, const Pooling& in, Tensor& out) {
  const int64_t total = out.numel();
  SEGDET_LAUNCH((pool_kernel<In, T>), blocks_for(total), kThreads, current_stream(input))
  (read_map<In>(input), rois.const_data_ptr<T>(), in, total, write_map<In>(out));
}

template <class T>
void launch_spread(const Tensor& grad, const Tensor& rois, const Pooling& in, bool deterministic,
                   Tensor& out) {
  const int64_t total = grad.numel();
  scatter_into<T>(out, grad, deterministic, [&](auto sum) {
    SEGDET_LAUNCH((spread_kernel<T, decltype(sum)>), blocks_for(total), kThreads,
                  current_stream(grad))
    (read_map<T>(grad), rois.const_data_ptr<T>(), in, total, write_map<T>(out), sum);
  });
}

}  // namespace

Tensor roi_align_rotated_cuda(const Tensor& input, const Tensor& rois, int64_t pooled_height,
                              int64_t pooled_width, double spatial_scale, int64_t sampling_ratio) {
  check_forward(input, rois, pooled_height, pooled_width);
  check_same_device(input, rois, "roi_align_rotated");
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  const Tensor boxes = as_contiguous(rois, compute_type(input.scalar_type()));
  Tensor out = empty_map_like(input, {boxes.size(0), input.size(1), pooled_height, pooled_width});
  if (out.numel() == 0) return out;
  const Pooling in{input.size(0), input.size(1),  input.size(2),
                   input.size(3), pooled_height,  pooled_width,
                   spatial_scale, sampling_ratio, has_channels_last(out)};
  switch (input.scalar_type()) {
    case ScalarType::Double:
      launch_pool<double, double>(input, boxes, in, out);
      break;
    case ScalarType::Half:
      launch_pool<__half, float>(input, boxes, in, out);
      break;
    case ScalarType::BFloat16:
      launch_pool<__nv_bfloat16, float>(input, boxes, in, out);
      break;
    default:
      launch_pool<float, float>(input, boxes, in, out);
  }
  check_launch("roi_align_rotated");
  return out;
}

Tensor roi_align_rotated_backward_cuda(const Tensor& grad, const Tensor& rois, int64_t batch,
                                       int64_t channels, int64_t height, int64_t width,
                                       double spatial_scale, int64_t sampling_ratio,
                                       bool deterministic) {
  check_backward(grad, rois, channels, height, width);
  check_same_device(grad, rois, "roi_align_rotated_backward");
  const torch::stable::accelerator::DeviceGuard guard(grad.get_device_index());
  const ScalarType type = compute_type(grad.scalar_type());
  const bool narrow = grad.scalar_type() != type;
  const Tensor wide = narrow ? torch::stable::to(grad, type) : grad;
  const Tensor boxes = as_contiguous(rois, type);
  const Pooling in{batch,         channels,       height,
                   width,         grad.size(2),   grad.size(3),
                   spatial_scale, sampling_ratio, has_channels_last(wide)};
  Tensor out = empty_map_like(wide, {batch, channels, height, width});
  if (type == ScalarType::Double)
    launch_spread<double>(wide, boxes, in, deterministic, out);
  else
    launch_spread<float>(wide, boxes, in, deterministic, out);
  check_launch("roi_align_rotated_backward");
  return narrow ? torch::stable::to(out, grad.scalar_type()) : out;
}

}  // namespace segdet::roi_align_rotated

SEGDET_CUDA_IMPL(m) {
  m.impl("roi_align_rotated", TORCH_BOX(&segdet::roi_align_rotated::roi_align_rotated_cuda));
  m.impl("roi_align_rotated_backward",
         TORCH_BOX(&segdet::roi_align_rotated::roi_align_rotated_backward_cuda));
}
