// Position-sensitive pooling on CUDA: one thread per bin and channel, which walks over what its
// rule takes of either axis.
//
// A rule has `axis(low, high, bins, bin, size)`, what one bin takes of one axis, corners in pixels:
//   begin, end         places on the axis
//   tap(i, size, tap)  the cells of one of them; false: off the map
//   count              by which the sum is divided
// and kEnds, how many cells a tap has: 2 (low and high), or low alone.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "../cuda.cuh"
#include "../scatter.cuh"
#include "position_sensitive.h"

namespace segdet::position_sensitive {

// The bin and channel that a thread works on.
struct BinIndex {
  int64_t region, channel, y, x;
};

__device__ inline BinIndex bin_index(int64_t i, const Shape& shape, bool channels_last) {
  const int64_t c = shape.channels, h = shape.pooled_height, w = shape.pooled_width;
  if (channels_last) return {i / c / w / h, i % c, i / c / w % h, i / c % w};
  return {i / w / h / c, i / w / h % c, i / w % h, i % w};
}

// Calls visit(offset in the map, weight) for all that a bin takes; false: there is no such image.
template <class T, class Map, class Rule, class Visit>
__device__ bool visit_cells(const BinIndex& bin, const T* rois, const Shape& shape,
                            const Rule& rule, const Map& map, const Visit& visit) {
  const T* roi = rois + 5 * bin.region;
  if (!(roi[0] >= T(0) && roi[0] < T(shape.batch))) return false;
  const int64_t image = int64_t(roi[0]);
  const int64_t gh = group_of(bin.y, shape.group_height, shape.pooled_height);
  const int64_t gw = group_of(bin.x, shape.group_width, shape.pooled_width);
  const int64_t channel = (bin.channel * shape.group_height + gh) * shape.group_width + gw;
  const auto rows = rule.axis(roi[2], roi[4], shape.pooled_height, bin.y, shape.height);
  const auto columns = rule.axis(roi[1], roi[3], shape.pooled_width, bin.x, shape.width);
  const T share = T(1) / (rows.count * columns.count);
  for (int64_t iy = rows.begin; iy < rows.end; ++iy) {
    Tap<T> y;
    if (!rows.tap(iy, shape.height, y)) continue;
    for (int64_t ix = columns.begin; ix < columns.end; ++ix) {
      Tap<T> x;
      if (!columns.tap(ix, shape.width, x)) continue;
      for (int ends = 0; ends < Rule::kEnds * Rule::kEnds; ++ends) {
        const bool lower = ends / Rule::kEnds, right = ends % Rule::kEnds;
        const T row_weight = lower ? y.fraction : T(1) - y.fraction;
        const T column_weight = right ? x.fraction : T(1) - x.fraction;
        visit(map.offset(image, channel, lower ? y.high : y.low, right ? x.high : x.low),
              row_weight * column_weight * share);
      }
    }
  }
  return true;
}

template <class In, class T, class Rule>
__global__ void pool_kernel(FeatureMap<const In> input, const T* rois, Shape shape, Rule rule,
                            bool channels_last, int64_t total, FeatureMap<In> out) {
  for (int64_t i = thread_index(); i < total; i += thread_count()) {
    const BinIndex bin = bin_index(i, shape, channels_last);
    T sum = 0;
    const bool exists = visit_cells(bin, rois, shape, rule, input, [&](int64_t cell, T weight) {
      sum += weight * T(input.data[cell]);
    });
    out.at(bin.region, bin.channel, bin.y, bin.x) = exists ? In(sum) : In(nanf(""));
  }
}

template <class T, class Rule, class Sum>
__global__ void spread_kernel(FeatureMap<const T> grad, const T* rois, Shape shape, Rule rule,
                              bool channels_last, int64_t total, FeatureMap<T> out, Sum sum) {
  for (int64_t i = thread_index(); i < total; i += thread_count()) {
    const BinIndex bin = bin_index(i, shape, channels_last);
    const T value = grad.at(bin.region, bin.channel, bin.y, bin.x);
    visit_cells(bin, rois, shape, rule, out,
                [&](int64_t cell, T weight) { sum.add(cell, weight * value); });
  }
}

template <class In, class T, class Rule>
void launch_pool(const Tensor& input, const Tensor& rois, const Shape& shape, const Rule& rule,
                 Tensor& out) {
  const int64_t total = out.numel();
  SEGDET_LAUNCH((pool_kernel<In, T, Rule>), blocks_for(total), kThreads, current_stream(input))
  (read_map<In>(input), rois.const_data_ptr<T>(), shape, rule, has_channels_last(out), total,
   write_map<In>(out));
}

template <class T, class Rule>
void launch_spread(const Tensor& grad, const Tensor& rois, const Shape& shape, const Rule& rule,
                   bool deterministic, Tensor& out) {
  const int64_t total = grad.numel();
  scatter_into<T>(out, grad, deterministic, [&](auto sum) {
    SEGDET_LAUNCH((spread_kernel<T, Rule, decltype(sum)>), blocks_for(total), kThreads,
                  current_stream(grad))
    (read_map<T>(grad), rois.const_data_ptr<T>(), shape, rule, has_channels_last(grad), total,
     write_map<T>(out), sum);
  });
}

// make_rule(T()): the op's rule in the type of the arithmetic.
template <class MakeRule>
Tensor pool_on_cuda(const MakeRule& make_rule, const Tensor& input, const Tensor& rois,
                    int64_t pooled_height, int64_t pooled_width, int64_t group_height,
                    int64_t group_width, const char* op) {
  check_map(input, "input", op);
  check_rois(rois, op);
  check_same_device(input, rois, op);
  const Shape shape = make_shape({input.size(0), input.size(1), input.size(2), input.size(3)},
                                 pooled_height, pooled_width, group_height, group_width, op);
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  const Tensor boxes = as_contiguous(rois, compute_type(input.scalar_type()));
  Tensor out = empty_map_like(input, {rois.size(0), shape.channels, pooled_height, pooled_width});
  if (out.numel() == 0) return out;
  switch (input.scalar_type()) {
    case ScalarType::Double:
      launch_pool<double, double>(input, boxes, shape, make_rule(double()), out);
      break;
    case ScalarType::Half:
      launch_pool<__half, float>(input, boxes, shape, make_rule(float()), out);
      break;
    case ScalarType::BFloat16:
      launch_pool<__nv_bfloat16, float>(input, boxes, shape, make_rule(float()), out);
      break;
    default:
      launch_pool<float, float>(input, boxes, shape, make_rule(float()), out);
  }
  check_launch(op);
  return out;
}

template <class MakeRule>
Tensor spread_on_cuda(const MakeRule& make_rule, const Tensor& grad, const Tensor& rois,
                      std::array<int64_t, 4> input, int64_t group_height, int64_t group_width,
                      bool deterministic, const char* op) {
  check_map(grad, "grad", op);
  check_rois(rois, op);
  check_same_device(grad, rois, op);
  const Shape shape = make_shape(input, grad.size(2), grad.size(3), group_height, group_width, op);
  check_grad(grad, rois, shape, op);
  const torch::stable::accelerator::DeviceGuard guard(grad.get_device_index());
  const ScalarType type = compute_type(grad.scalar_type());
  const bool narrow = grad.scalar_type() != type;
  const Tensor wide = narrow ? torch::stable::to(grad, type) : grad;
  const Tensor boxes = as_contiguous(rois, type);
  Tensor out = empty_map_like(wide, input);
  if (type == ScalarType::Double)
    launch_spread<double>(wide, boxes, shape, make_rule(double()), deterministic, out);
  else
    launch_spread<float>(wide, boxes, shape, make_rule(float()), deterministic, out);
  check_launch(op);
  return narrow ? torch::stable::to(out, grad.scalar_type()) : out;
}

}  // namespace segdet::position_sensitive
