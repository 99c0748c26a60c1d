// RoIAlign and its gradient on CUDA: one thread per output value, which walks over its samples.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "../scatter.cuh"
#include "roi_align.h"

namespace segdet {
namespace {

struct Shape {
  int64_t batch, channels, height, width, pooled_height, pooled_width;
};

struct Rule {
  double spatial_scale;
  int64_t sampling_ratio;
  bool aligned;
};

// The bin that a thread works on.
template <class T>
struct Bin {
  int64_t plane;  // index of its (image, channel) plane; -1: the image does not exist
  Axis<T> y, x;
  SampleRange rows, columns;
  int64_t py, px;
  T samples;  // in the average, at least 1
};

template <class T>
__device__ Bin<T> bin_of(int64_t index, const T* rois, const Shape& shape, const Rule& rule) {
  Bin<T> bin;
  bin.px = index % shape.pooled_width;
  bin.py = index / shape.pooled_width % shape.pooled_height;
  const int64_t channel = index / shape.pooled_width / shape.pooled_height % shape.channels;
  const T* roi = rois + 5 * (index / shape.pooled_width / shape.pooled_height / shape.channels);
  const bool exists = roi[0] >= T(0) && roi[0] < T(shape.batch);
  bin.plane = exists ? int64_t(roi[0]) * shape.channels + channel : -1;
  const T scale = T(rule.spatial_scale);
  bin.y =
      make_axis<T>(roi[2], roi[4], scale, rule.aligned, shape.pooled_height, rule.sampling_ratio);
  bin.x =
      make_axis<T>(roi[1], roi[3], scale, rule.aligned, shape.pooled_width, rule.sampling_ratio);
  bin.rows = samples_within(bin.y, bin.py, shape.height);
  bin.columns = samples_within(bin.x, bin.px, shape.width);
  bin.samples = fmax(bin.y.samples * bin.x.samples, T(1));
  return bin;
}

// In: stored type of the map; T: type of the arithmetic.
template <class In, class T>
__global__ void roi_align_kernel(const In* input, const T* rois, Shape shape, Rule rule,
                                 int64_t total, In* out) {
  for (int64_t index = thread_index(); index < total; index += thread_count()) {
    const Bin<T> bin = bin_of(index, rois, shape, rule);
    if (bin.plane < 0) {
      out[index] = In(nanf(""));
      continue;
    }
    const In* plane = input + bin.plane * shape.height * shape.width;
    T sum = 0;
    for (int64_t iy = bin.rows.begin; iy < bin.rows.end; ++iy) {
      Tap<T> y;
      if (!tap_at(sample_position(bin.y, bin.py, iy), shape.height, y)) continue;
      const In *upper = plane + y.low * shape.width, *lower = plane + y.high * shape.width;
      for (int64_t ix = bin.columns.begin; ix < bin.columns.end; ++ix) {
        Tap<T> x;
        if (!tap_at(sample_position(bin.x, bin.px, ix), shape.width, x)) continue;
        const T above = (1 - x.fraction) * T(upper[x.low]) + x.fraction * T(upper[x.high]);
        const T below = (1 - x.fraction) * T(lower[x.low]) + x.fraction * T(lower[x.high]);
        sum += (1 - y.fraction) * above + y.fraction * below;
      }
    }
    out[index] = In(sum / bin.samples);
  }
}

template <class T, class Sum>
__global__ void roi_align_backward_kernel(const T* grad, const T* rois, Shape shape, Rule rule,
                                          int64_t total, Sum sum) {
  for (int64_t index = thread_index(); index < total; index += thread_count()) {
    const Bin<T> bin = bin_of(index, rois, shape, rule);
    if (bin.plane < 0) continue;
    const int64_t plane = bin.plane * shape.height * shape.width;
    const T share = grad[index] / bin.samples;
    for (int64_t iy = bin.rows.begin; iy < bin.rows.end; ++iy) {
      Tap<T> y;
      if (!tap_at(sample_position(bin.y, bin.py, iy), shape.height, y)) continue;
      const int64_t upper = plane + y.low * shape.width, lower = plane + y.high * shape.width;
      for (int64_t ix = bin.columns.begin; ix < bin.columns.end; ++ix) {
        Tap<T> x;
        if (!tap_at(sample_position(bin.x, bin.px, ix), shape.width, x)) continue;
        const T above = (1 - y.fraction) * share, below = y.fraction * share;
        sum.add(upper + x.low, (1 - x.fraction) * above);
        sum.add(upper + x.high, x.fraction * above);
        sum.add(lower + x.low, (1 - x.fraction) * below);
        sum.add(lower + x.high, x.fraction * below);
      }
    }
  }
}

template <class In, class T>
void launch_forward(const Tensor& input, const Tensor& rois, const Shape& shape, const Rule& rule,
                    Tensor& out) {
  const int64_t total = out.numel();
  SEGDET_LAUNCH((roi_align_kernel<In, T>), blocks_for(total), kThreads, current_stream(input))
  (static_cast<const In*>(input.const_data_ptr()), rois.const_data_ptr<T>(), shape, rule, total,
   static_cast<In*>(out.mutable_data_ptr()));
  check_launch("roi_align");
}

template <class T>
void launch_backward(const Tensor& grad, const Tensor& rois, const Shape& shape, const Rule& rule,
                     bool deterministic, Tensor& out) {
  const int64_t total = grad.numel();
  scatter_into<T>(out, grad, deterministic, [&](auto sum) {
    SEGDET_LAUNCH((roi_align_backward_kernel<T, decltype(sum)>), blocks_for(total), kThreads,
                  current_stream(grad))
    (grad.const_data_ptr<T>(), rois.const_data_ptr<T>(), shape, rule, total, sum);
  });
  check_launch("roi_align_backward");
}

}  // namespace

Tensor roi_align_cuda(const Tensor& input, const Tensor& rois, int64_t pooled_height,
                      int64_t pooled_width, double spatial_scale, int64_t sampling_ratio,
                      bool aligned) {
  check_roi_align(input, rois, pooled_height, pooled_width);
  check_same_device(input, rois, "roi_align");
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  const Tensor maps = torch::stable::contiguous(input);
  const Tensor regions = as_contiguous(rois, compute_type(input.scalar_type()));
  const Shape shape{maps.size(0), maps.size(1),  maps.size(2),
                    maps.size(3), pooled_height, pooled_width};
  const Rule rule{spatial_scale, sampling_ratio, aligned};
  Tensor out =
      torch::stable::new_empty(maps, {regions.size(0), maps.size(1), pooled_height, pooled_width});
  if (out.numel() == 0) return out;
  switch (maps.scalar_type()) {
    case ScalarType::Double:
      launch_forward<double, double>(maps, regions, shape, rule, out);
      break;
    case ScalarType::Half:
      launch_forward<__half, float>(maps, regions, shape, rule, out);
      break;
    case ScalarType::BFloat16:
      launch_forward<__nv_bfloat16, float>(maps, regions, shape, rule, out);
      break;
    default:
      launch_forward<float, float>(maps, regions, shape, rule, out);
  }
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
  const Tensor pooled = as_contiguous(grad, type), regions = as_contiguous(rois, type);
  const Shape shape{batch, channels, height, width, grad.size(2), grad.size(3)};
  const Rule rule{spatial_scale, sampling_ratio, aligned};
  Tensor out = torch::stable::new_empty(pooled, {batch, channels, height, width});
  if (type == ScalarType::Double)
    launch_backward<double>(pooled, regions, shape, rule, deterministic, out);
  else
    launch_backward<float>(pooled, regions, shape, rule, deterministic, out);
  return as_contiguous(out, grad.scalar_type());
}

}  // namespace segdet

SEGDET_CUDA_IMPL(m) {
  m.impl("roi_align", TORCH_BOX(&segdet::roi_align_cuda));
  m.impl("roi_align_backward", TORCH_BOX(&segdet::roi_align_backward_cuda));
}
