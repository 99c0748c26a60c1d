// Samples of a map at points, and their gradients, on CUDA: one thread per point and channel, those
// of neighbouring channels side by side where the map has them so; for the gradient of a point's
// coordinates one thread per point.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "../cuda.cuh"
#include "../scatter.cuh"
#include "point_sample.h"

namespace segdet::point_sample {
namespace {

struct Sampling {
  int64_t channels, height, width, points;
  bool align_corners, channels_last;
};

// The sample that a thread works on.
struct SampleIndex {
  int64_t image, channel, point;
};

__device__ inline SampleIndex sample_index(int64_t i, const Sampling& in) {
  const int64_t c = in.channels, p = in.points;
  if (in.channels_last) return {i / c / p, i % c, i / c % p};
  return {i / p / c, i / p % c, i % p};
}

// Both pairs of the cells around points[image, point]; false: none is near.
template <class T>
__device__ bool pairs_at(const T* points, int64_t image, int64_t point, const Sampling& in,
                         Pair<T>& y, Pair<T>& x) {
  const T* place = points + (image * in.points + point) * 2;
  return pair_at(place[0], in.width, in.align_corners, x) &&
         pair_at(place[1], in.height, in.align_corners, y);
}

template <class In, class T>
__global__ void sample_kernel(FeatureMap<const In> input, const T* points, Sampling in,
                              int64_t total, In* out) {
  for (int64_t i = thread_index(); i < total; i += thread_count()) {
    const SampleIndex s = sample_index(i, in);
    T sum = 0;
    Pair<T> y, x;
    if (pairs_at(points, s.image, s.point, in, y, x))
      for (int64_t k = 0; k < 4; ++k)
        sum += y.weight[k / 2] * x.weight[k % 2] *
               T(input.at(s.image, s.channel, y.cell[k / 2], x.cell[k % 2]));
    out[(s.image * in.channels + s.channel) * in.points + s.point] = In(sum);
  }
}

template <class T, class Sum>
__global__ void scatter_kernel(const T* grad, const T* points, Sampling in, int64_t total,
                               FeatureMap<T> out, Sum sum) {
  for (int64_t i = thread_index(); i < total; i += thread_count()) {
    const SampleIndex s = sample_index(i, in);
    const T share = grad[(s.image * in.channels + s.channel) * in.points + s.point];
    Pair<T> y, x;
    if (pairs_at(points, s.image, s.point, in, y, x))
      for (int64_t k = 0; k < 4; ++k)
        sum.add(out.offset(s.image, s.channel, y.cell[k / 2], x.cell[k % 2]),
                y.weight[k / 2] * x.weight[k % 2] * share);
  }
}

template <class In, class T>
__global__ void slope_kernel(FeatureMap<const In> grad, FeatureMap<const In> input, const T* points,
                             Sampling in, int64_t total, T* out) {
  for (int64_t i = thread_index(); i < total; i += thread_count()) {
    const int64_t image = i / in.points, point = i % in.points;
    T by_x = 0, by_y = 0;
    Pair<T> y, x;
    if (pairs_at(points, image, point, in, y, x)) {
      for (int64_t k = 0; k < 4; ++k) {
        T sum = 0;
        for (int64_t c = 0; c < in.channels; ++c)
          sum +=
              T(grad.at(image, c, 0, point)) * T(input.at(image, c, y.cell[k / 2], x.cell[k % 2]));
        by_x += y.weight[k / 2] * x.slope[k % 2] * sum;
        by_y += y.slope[k / 2] * x.weight[k % 2] * sum;
      }
    }
    out[2 * i] = by_x * cells_per_unit<T>(in.width, in.align_corners);
    out[2 * i + 1] = by_y * cells_per_unit<T>(in.height, in.align_corners);
  }
}

template <class In, class T>
void launch_sample(const Tensor& input, const Tensor& points, const Sampling& in, Tensor& out) {
  const int64_t total = out.numel();
  SEGDET_LAUNCH((sample_kernel<In, T>), blocks_for(total), kThreads, current_stream(input))
  (read_map<In>(input), points.const_data_ptr<T>(), in, total,
   static_cast<In*>(out.mutable_data_ptr()));
}

template <class T>
void launch_scatter(const Tensor& grad, const Tensor& points, const Sampling& in,
                    bool deterministic, Tensor& out) {
  const int64_t total = grad.numel();
  scatter_into<T>(out, grad, deterministic, [&](auto sum) {
    SEGDET_LAUNCH((scatter_kernel<T, decltype(sum)>), blocks_for(total), kThreads,
                  current_stream(grad))
    (grad.const_data_ptr<T>(), points.const_data_ptr<T>(), in, total, write_map<T>(out), sum);
  });
}

template <class In, class T>
void launch_slope(const Tensor& grad, const Tensor& input, const Tensor& points, const Sampling& in,
                  Tensor& out) {
  const FeatureMap<const In> samples{static_cast<const In*>(grad.const_data_ptr()), grad.stride(0),
                                     grad.stride(1), 0, grad.stride(2)};
  const int64_t total = out.numel() / 2;
  SEGDET_LAUNCH((slope_kernel<In, T>), blocks_for(total), kThreads, current_stream(input))
  (samples, read_map<In>(input), points.const_data_ptr<T>(), in, total, out.mutable_data_ptr<T>());
}

}  // namespace

Tensor point_sample_cuda(const Tensor& input, const Tensor& point_coords, bool align_corners) {
  check_forward(input, point_coords);
  check_same_device(input, point_coords, "point_sample");
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  const Tensor points = as_contiguous(point_coords, compute_type(input.scalar_type()));
  const Sampling in{input.size(1),  input.size(2), input.size(3),
                    points.size(1), align_corners, has_channels_last(input)};
  Tensor out = torch::stable::new_empty(input, {input.size(0), in.channels, in.points});
  if (out.numel() == 0) return out;
  switch (input.scalar_type()) {
    case ScalarType::Double:
      launch_sample<double, double>(input, points, in, out);
      break;
    case ScalarType::Half:
      launch_sample<__half, float>(input, points, in, out);
      break;
    case ScalarType::BFloat16:
      launch_sample<__nv_bfloat16, float>(input, points, in, out);
      break;
    default:
      launch_sample<float, float>(input, points, in, out);
  }
  check_launch("point_sample");
  return out;
}

Tensor point_sample_backward_cuda(const Tensor& grad, const Tensor& point_coords, int64_t height,
                                  int64_t width, bool align_corners, bool channels_last,
                                  bool deterministic) {
  check_backward(grad, point_coords, height, width);
  check_same_device(grad, point_coords, "point_sample_backward");
  const torch::stable::accelerator::DeviceGuard guard(grad.get_device_index());
  const ScalarType type = compute_type(grad.scalar_type());
  const Tensor wide = as_contiguous(grad, type), points = as_contiguous(point_coords, type);
  const Sampling in{wide.size(1), height, width, wide.size(2), align_corners, channels_last};
  Tensor out = empty_map(wide, {wide.size(0), in.channels, height, width}, type, channels_last);
  if (type == ScalarType::Double)
    launch_scatter<double>(wide, points, in, deterministic, out);
  else
    launch_scatter<float>(wide, points, in, deterministic, out);
  check_launch("point_sample_backward");
  return type == grad.scalar_type() ? out : torch::stable::to(out, grad.scalar_type());
}

Tensor point_sample_coords_backward_cuda(const Tensor& grad, const Tensor& input,
                                         const Tensor& point_coords, bool align_corners) {
  check_coords_backward(grad, input, point_coords);
  check_same_device(input, point_coords, "point_sample_coords_backward");
  check_same_device(input, grad, "point_sample_coords_backward");
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  const ScalarType type = compute_type(input.scalar_type());
  const Tensor points = as_contiguous(point_coords, type);
  const Sampling in{input.size(1),  input.size(2), input.size(3),
                    points.size(1), align_corners, has_channels_last(input)};
  Tensor out = torch::stable::new_empty(points, {input.size(0), in.points, 2});
  if (out.numel() > 0) {
    switch (input.scalar_type()) {
      case ScalarType::Double:
        launch_slope<double, double>(grad, input, points, in, out);
        break;
      case ScalarType::Half:
        launch_slope<__half, float>(grad, input, points, in, out);
        break;
      case ScalarType::BFloat16:
        launch_slope<__nv_bfloat16, float>(grad, input, points, in, out);
        break;
      default:
        launch_slope<float, float>(grad, input, points, in, out);
    }
    check_launch("point_sample_coords_backward");
  }
  return type == point_coords.scalar_type() ? out
                                            : torch::stable::to(out, point_coords.scalar_type());
}

}  // namespace segdet::point_sample

SEGDET_CUDA_IMPL(m) {
  m.impl("point_sample", TORCH_BOX(&segdet::point_sample::point_sample_cuda));
  m.impl("point_sample_backward", TORCH_BOX(&segdet::point_sample::point_sample_backward_cuda));
  m.impl("point_sample_coords_backward",
         TORCH_BOX(&segdet::point_sample::point_sample_coords_backward_cuda));
}
