// RoIAlign and its gradient on CUDA: a thread works on one bin, for a few channels, which share
// what it finds out about the bin. Neighbouring threads have neighbouring channels of channels-last
// maps, else neighbouring bins.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "../feature_map.h"
#include "../scatter.cuh"
#include "roi_align.h"

namespace segdet::roi_align {
namespace {

// Channels per thread: c, c + groups, c + 2 * groups, ... so that those of a warp are adjacent.
constexpr int kChannels = 4;

struct Shape {
  int64_t batch, channels, height, width, pooled_height, pooled_width;
  bool channels_last;

  int64_t groups() const { return (channels + kChannels - 1) / kChannels; }
};

struct Rule {
  double spatial_scale;
  int64_t sampling_ratio;
  bool aligned;
};

struct Bin {
  int64_t region, group, y, x;
};

// Index: a type that holds the number of threads; 64-bit divisions are slow.
template <class Index>
__device__ Bin bin_of(Index i, const Shape& shape, Index groups) {
  const Index h = Index(shape.pooled_height), w = Index(shape.pooled_width);
  if (shape.channels_last)
    return {i / groups / w / h, i % groups, i / groups / w % h, i / groups % w};
  return {i / w / h / groups, i / w / h % groups, i / w % h, i % w};
}

// Calls visit(y, x, weight) for every cell that a bin takes of an image; a cell may come twice.
template <class T, class Visit>
__device__ void visit_cells(const Bin& bin, const T* roi, const Shape& shape, const Rule& rule,
                            const Visit& visit) {
  const T scale = T(rule.spatial_scale);
  const Axis<T> y_axis =
      make_axis<T>(roi[2], roi[4], scale, rule.aligned, shape.pooled_height, rule.sampling_ratio);
  const Axis<T> x_axis =
      make_axis<T>(roi[1], roi[3], scale, rule.aligned, shape.pooled_width, rule.sampling_ratio);
  const SampleRange rows = samples_within(y_axis, bin.y, shape.height);
  const SampleRange columns = samples_within(x_axis, bin.x, shape.width);
  const T share = T(1) / fmax(y_axis.samples * x_axis.samples, T(1));
  for (int64_t iy = rows.begin; iy < rows.end; ++iy) {
    Tap<T> y;
    if (!tap_at(sample_position(y_axis, bin.y, iy), shape.height, y)) continue;
    const T above = (T(1) - y.fraction) * share, below = y.fraction * share;
    for (int64_t ix = columns.begin; ix < columns.end; ++ix) {
      Tap<T> x;
      if (!tap_at(sample_position(x_axis, bin.x, ix), shape.width, x)) continue;
      visit(y.low, x.low, (T(1) - x.fraction) * above);
      visit(y.low, x.high, x.fraction * above);
      visit(y.high, x.low, (T(1) - x.fraction) * below);
      visit(y.high, x.high, x.fraction * below);
    }
  }
}

template <class T>
__device__ bool image_exists(const T* roi, const Shape& shape) {
  return roi[0] >= T(0) && roi[0] < T(shape.batch);
}

// In: stored type of the map; T: type of the arithmetic.
template <class In, class T, class Index>
__global__ void pool_kernel(FeatureMap<const In> input, const T* rois, Shape shape, Rule rule,
                            int64_t groups, int64_t total, FeatureMap<In> out) {
  for (int64_t i = thread_index(); i < total; i += thread_count()) {
    const Bin bin = bin_of<Index>(Index(i), shape, Index(groups));
    const T* roi = rois + 5 * bin.region;
    const bool exists = image_exists(roi, shape);
    T sums[kChannels] = {};
    if (exists) {
      const In* image = &input.at(int64_t(roi[0]), bin.group, 0, 0);
      visit_cells(bin, roi, shape, rule, [&](int64_t y, int64_t x, T weight) {
        const In* cell = image + y * input.row + x * input.column;
        for (int k = 0; k < kChannels; ++k)
          if (bin.group + k * groups < shape.channels)
            sums[k] = fma(weight, T(cell[k * groups * input.channel]), sums[k]);
      });
    }
    for (int k = 0; k < kChannels; ++k)
      if (bin.group + k * groups < shape.channels)
        out.at(bin.region, bin.group + k * groups, bin.y, bin.x) =
            exists ? In(sums[k]) : In(nanf(""));
  }
}

template <class T, class Index, class Sum>
__global__ void spread_kernel(FeatureMap<const T> grad, const T* rois, Shape shape, Rule rule,
                              int64_t groups, int64_t total, FeatureMap<T> out, Sum sum) {
  for (int64_t i = thread_index(); i < total; i += thread_count()) {
    const Bin bin = bin_of<Index>(Index(i), shape, Index(groups));
    const T* roi = rois + 5 * bin.region;
    if (!image_exists(roi, shape)) continue;
    T values[kChannels];
    for (int k = 0; k < kChannels; ++k)
      if (bin.group + k * groups < shape.channels)
        values[k] = grad.at(bin.region, bin.group + k * groups, bin.y, bin.x);
    visit_cells(bin, roi, shape, rule, [&](int64_t y, int64_t x, T weight) {
      const int64_t cell = out.offset(int64_t(roi[0]), bin.group, y, x);
      for (int k = 0; k < kChannels; ++k)
        if (bin.group + k * groups < shape.channels)
          sum.add(cell + k * groups * out.channel, weight * values[k]);
    });
  }
}

// Calls work(Index()) with the narrowest type for a number of threads.
template <class Work>
void for_index(int64_t total, const Work& work) {
  if (total < int64_t{1} << 31)
    work(uint32_t());
  else
    work(int64_t());
}

template <class In, class T>
void launch_pool(const Tensor& input, const Tensor& rois, const Shape& shape, const Rule& rule,
                 Tensor& out) {
  const int64_t bins = out.size(0) * shape.pooled_height * shape.pooled_width;
  const int64_t total = bins * shape.groups();
  if (total == 0) return;
  for_index(total, [&](auto index) {
    SEGDET_LAUNCH((pool_kernel<In, T, decltype(index)>), blocks_for(total), kThreads,
                  current_stream(input))
    (read_map<In>(input), rois.const_data_ptr<T>(), shape, rule, shape.groups(), total,
     write_map<In>(out));
  });
}

template <class T>
void launch_spread(const Tensor& grad, const Tensor& rois, const Shape& shape, const Rule& rule,
                   bool deterministic, Tensor& out) {
  const int64_t bins = grad.size(0) * shape.pooled_height * shape.pooled_width;
  const int64_t total = bins * shape.groups();
  for_index(total, [&](auto index) {
    scatter_into<T>(out, grad, deterministic, [&](auto sum) {
      SEGDET_LAUNCH((spread_kernel<T, decltype(index), decltype(sum)>), blocks_for(total), kThreads,
                    current_stream(grad))
      (read_map<T>(grad), rois.const_data_ptr<T>(), shape, rule, shape.groups(), total,
       write_map<T>(out), sum);
    });
  });
}

}  // namespace

Tensor roi_align_cuda(const Tensor& input, const Tensor& rois, int64_t pooled_height,
                      int64_t pooled_width, double spatial_scale, int64_t sampling_ratio,
                      bool aligned) {
  check_roi_align(input, rois, pooled_height, pooled_width);
  check_same_device(input, rois, "roi_align");
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  const Tensor boxes = as_contiguous(rois, compute_type(input.scalar_type()));
  const Shape shape{input.size(0), input.size(1), input.size(2),           input.size(3),
                    pooled_height, pooled_width,  has_channels_last(input)};
  const Rule rule{spatial_scale, sampling_ratio, aligned};
  Tensor out = empty_map_like(input, {rois.size(0), input.size(1), pooled_height, pooled_width});
  switch (input.scalar_type()) {
    case ScalarType::Double:
      launch_pool<double, double>(input, boxes, shape, rule, out);
      break;
    case ScalarType::Half:
      launch_pool<__half, float>(input, boxes, shape, rule, out);
      break;
    case ScalarType::BFloat16:
      launch_pool<__nv_bfloat16, float>(input, boxes, shape, rule, out);
      break;
    default:
      launch_pool<float, float>(input, boxes, shape, rule, out);
  }
  check_launch("roi_align");
  return out;
}

Tensor roi_align_backward_cuda(const Tensor& grad, const Tensor& rois, int64_t batch,
                               int64_t channels, int64_t height, int64_t width,
                               double spatial_scale, int64_t sampling_ratio, bool aligned,
                               bool deterministic) {
  check_roi_align_backward(grad, rois, channels, height, width);
  check_same_device(grad, rois, "roi_align_backward");
  const torch::stable::accelerator::DeviceGuard guard(grad.get_device_index());
  const ScalarType type = compute_type(grad.scalar_type());
  const bool narrow = grad.scalar_type() != type;
  const Tensor wide = narrow ? torch::stable::to(grad, type) : grad;
  const Tensor boxes = as_contiguous(rois, type);
  const Shape shape{
      batch, channels, height, width, grad.size(2), grad.size(3), has_channels_last(wide)};
  const Rule rule{spatial_scale, sampling_ratio, aligned};
  Tensor out = empty_map_like(wide, {batch, channels, height, width});
  if (type == ScalarType::Double)
    launch_spread<double>(wide, boxes, shape, rule, deterministic, out);
  else
    launch_spread<float>(wide, boxes, shape, rule, deterministic, out);
  check_launch("roi_align_backward");
  return narrow ? torch::stable::to(out, grad.scalar_type()) : out;
}

}  // namespace segdet::roi_align

SEGDET_CUDA_IMPL(m) {
  m.impl("roi_align", TORCH_BOX(&segdet::roi_align::roi_align_cuda));
  m.impl("roi_align_backward", TORCH_BOX(&segdet::roi_align::roi_align_backward_cuda));
}
