// RoIAlign and its gradient on the CPU.
//
// Bilinear samples averaged over a bin are a weighted sum of cells, and the weights are a product
// of one factor per row and one per column. So a region is two short lists of factors, worked out
// once for all channels, and pooling one channel is: weighted sums of rows (contiguous,
// vectorised), then weighted sums of the few columns. The gradient is the transpose of that.
//
// Both directions go plane by plane (one channel of one image): the plane stays in the cache while
// its regions are pooled, and one thread alone adds to a plane's gradient, region after region, so
// the result does not depend on the number of threads.
#include "roi_align.h"

#include <algorithm>
#include <vector>

#include "../simd.h"

namespace segdet {
namespace {

template <class T>
struct Term {
  int32_t cell;
  T weight;
};

// What every bin of one axis takes of which cell.
template <class T>
struct AxisWeights {
  std::vector<int32_t> begin;  // (bins + 1,): terms of bin b are [begin[b], begin[b + 1])
  std::vector<Term<T>> terms;
  int32_t low = 0, high = 0;  // all cells lie in [low, high)

  // Neighbouring samples share cells: they are among the last two terms of the bin.
  void add(int64_t cell, double weight) {
    const std::size_t bin_begin = begin.back();
    for (std::size_t i = terms.size(); i > bin_begin && i + 2 > terms.size(); --i) {
      if (terms[i - 1].cell == cell) {
        terms[i - 1].weight += T(weight);
        return;
      }
    }
    terms.push_back({int32_t(cell), T(weight)});
  }
};

template <class T>
AxisWeights<T> axis_weights(const Axis<double>& axis, int64_t bins, int64_t size) {
  AxisWeights<T> out;
  out.begin.reserve(bins + 1);
  out.begin.push_back(0);
  for (int64_t bin = 0; bin < bins; ++bin) {
    const SampleRange range = samples_within(axis, bin, size);
    for (int64_t i = range.begin; i < range.end; ++i) {
      Tap<double> tap;
      if (!tap_at(sample_position(axis, bin, i), size, tap)) continue;
      out.add(tap.low, (1 - tap.fraction) / axis.samples);
      if (tap.high > tap.low) out.add(tap.high, tap.fraction / axis.samples);
    }
    out.begin.push_back(int32_t(out.terms.size()));
  }
  if (!out.terms.empty()) {
    const auto [low, high] =
        std::minmax_element(out.terms.begin(), out.terms.end(),
                            [](const Term<T>& a, const Term<T>& b) { return a.cell < b.cell; });
    out.low = low->cell;
    out.high = high->cell + 1;
  }
  return out;
}

template <class T>
struct Region {
  int64_t index;  // row of rois
  AxisWeights<T> y, x;
};

struct Pooling {
  int64_t pooled_height, pooled_width;
  double spatial_scale;
  int64_t sampling_ratio;
  bool aligned;
};

// The regions of each image, in the order of rois (R, 5) float32 or float64.
template <class T>
std::vector<std::vector<Region<T>>> regions_by_image(const Tensor& rois, int64_t batch,
                                                     int64_t height, int64_t width,
                                                     const Pooling& pooling) {
  const T* roi = rois.const_data_ptr<T>();
  std::vector<std::vector<Region<T>>> images(batch);
  std::vector<Region<T>*> regions(rois.size(0));
  for (int64_t r = 0; r < rois.size(0); ++r) {
    const T image = roi[5 * r];
    SEGDET_CHECK(image >= 0 && image < T(batch), "segdet::roi_align: rois[", r,
                 ", 0] is the image's index in the batch and must be in [0, ", batch, "), is ",
                 image);
    images[int64_t(image)].push_back({r, {}, {}});
  }
  for (auto& image : images)
    for (auto& region : image) regions[region.index] = &region;
  torch::stable::parallel_for(0, rois.size(0), 16, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const double x1 = roi[5 * r + 1], y1 = roi[5 * r + 2];
      const double x2 = roi[5 * r + 3], y2 = roi[5 * r + 4];
      const auto y = make_axis<double>(y1, y2, pooling.spatial_scale, pooling.aligned,
                                       pooling.pooled_height, pooling.sampling_ratio);
      const auto x = make_axis<double>(x1, x2, pooling.spatial_scale, pooling.aligned,
                                       pooling.pooled_width, pooling.sampling_ratio);
      regions[r]->y = axis_weights<T>(y, pooling.pooled_height, height);
      regions[r]->x = axis_weights<T>(x, pooling.pooled_width, width);
    }
  });
  return images;
}

// plane (H, W) -> out (h, w); row: scratch of W.
template <class T>
SEGDET_INLINE void pool(const T* plane, int64_t width, const Region<T>& region, T* row, T* out) {
  const AxisWeights<T>&ys = region.y, &xs = region.x;
  const int64_t span = xs.high - xs.low;
  const int64_t bins_y = int64_t(ys.begin.size()) - 1, bins_x = int64_t(xs.begin.size()) - 1;
  for (int64_t py = 0; py < bins_y; ++py) {
    for (int64_t x = 0; x < span; ++x) row[x] = 0;
    for (int32_t i = ys.begin[py]; i < ys.begin[py + 1]; ++i) {
      const T* cells = plane + ys.terms[i].cell * width + xs.low;
      const T weight = ys.terms[i].weight;
      for (int64_t x = 0; x < span; ++x) row[x] += weight * cells[x];
    }
    for (int64_t px = 0; px < bins_x; ++px) {
      T sum = 0;
      for (int32_t i = xs.begin[px]; i < xs.begin[px + 1]; ++i)
        sum += xs.terms[i].weight * row[xs.terms[i].cell - xs.low];
      out[py * bins_x + px] = sum;
    }
  }
}

// The transpose: grad (h, w) is added to plane_grad (H, W).
template <class T>
SEGDET_INLINE void spread(const T* grad, int64_t width, const Region<T>& region, T* row,
                          T* plane_grad) {
  const AxisWeights<T>&ys = region.y, &xs = region.x;
  const int64_t span = xs.high - xs.low;
  const int64_t bins_y = int64_t(ys.begin.size()) - 1, bins_x = int64_t(xs.begin.size()) - 1;
  for (int64_t py = 0; py < bins_y; ++py) {
    for (int64_t x = 0; x < span; ++x) row[x] = 0;
    for (int64_t px = 0; px < bins_x; ++px) {
      const T value = grad[py * bins_x + px];
      for (int32_t i = xs.begin[px]; i < xs.begin[px + 1]; ++i)
        row[xs.terms[i].cell - xs.low] += xs.terms[i].weight * value;
    }
    for (int32_t i = ys.begin[py]; i < ys.begin[py + 1]; ++i) {
      T* cells = plane_grad + ys.terms[i].cell * width + xs.low;
      const T weight = ys.terms[i].weight;
      for (int64_t x = 0; x < span; ++x) cells[x] += weight * row[x];
    }
  }
}

// target_clones needs plain functions, hence one per type. pooled: channel's cells of region 0;
// the next region's are region_stride further.
#define SEGDET_PLANE_KERNELS(T)                                                               \
  SEGDET_SIMD void pool_plane(const T* plane, int64_t width,                                  \
                              const std::vector<Region<T>>& regions, T* row, T* pooled,       \
                              int64_t region_stride) {                                        \
    for (const auto& region : regions)                                                        \
      pool(plane, width, region, row, pooled + region.index * region_stride);                 \
  }                                                                                           \
  SEGDET_SIMD void spread_plane(const T* pooled_grad, int64_t region_stride,                  \
                                const std::vector<Region<T>>& regions, int64_t width, T* row, \
                                T* plane_grad) {                                              \
    for (const auto& region : regions)                                                        \
      spread(pooled_grad + region.index * region_stride, width, region, row, plane_grad);     \
  }
SEGDET_PLANE_KERNELS(float)
SEGDET_PLANE_KERNELS(double)
#undef SEGDET_PLANE_KERNELS

template <class T>
void forward(const Tensor& input, const Tensor& rois, const Pooling& pooling, Tensor& out) {
  const int64_t batch = input.size(0), channels = input.size(1);
  const int64_t height = input.size(2), width = input.size(3);
  const int64_t bins = pooling.pooled_height * pooling.pooled_width;
  const auto images = regions_by_image<T>(rois, batch, height, width, pooling);
  const T* planes = input.const_data_ptr<T>();
  T* pooled = out.mutable_data_ptr<T>();
  torch::stable::parallel_for(0, batch * channels, 1, [&](int64_t begin, int64_t end) {
    std::vector<T> row(width);
    for (int64_t p = begin; p < end; ++p)
      pool_plane(planes + p * height * width, width, images[p / channels], row.data(),
                 pooled + p % channels * bins, channels * bins);
  });
}

template <class T>
void backward(const Tensor& grad, const Tensor& rois, const Pooling& pooling, Tensor& out) {
  const int64_t batch = out.size(0), channels = out.size(1);
  const int64_t height = out.size(2), width = out.size(3);
  const int64_t bins = pooling.pooled_height * pooling.pooled_width;
  const auto images = regions_by_image<T>(rois, batch, height, width, pooling);
  const T* pooled_grad = grad.const_data_ptr<T>();
  T* planes = out.mutable_data_ptr<T>();
  torch::stable::parallel_for(0, batch * channels, 1, [&](int64_t begin, int64_t end) {
    std::vector<T> row(width);
    for (int64_t p = begin; p < end; ++p) {
      T* plane = planes + p * height * width;
      std::fill(plane, plane + height * width, T(0));
      spread_plane(pooled_grad + p % channels * bins, channels * bins, images[p / channels], width,
                   row.data(), plane);
    }
  });
}

}  // namespace

// input (B, C, H, W), rois (R, 5) of (image, x1, y1, x2, y2) in pixels -> (R, C, h, w).
Tensor roi_align_cpu(const Tensor& input, const Tensor& rois, int64_t pooled_height,
                     int64_t pooled_width, double spatial_scale, int64_t sampling_ratio,
                     bool aligned) {
  check_roi_align(input, rois, pooled_height, pooled_width);
  const ScalarType type = compute_type(input.scalar_type());
  const Tensor maps = as_contiguous(input, type), regions = as_contiguous(rois, type);
  const Pooling pooling{pooled_height, pooled_width, spatial_scale, sampling_ratio, aligned};
  Tensor out =
      torch::stable::new_empty(maps, {regions.size(0), maps.size(1), pooled_height, pooled_width});
  if (type == ScalarType::Double)
    forward<double>(maps, regions, pooling, out);
  else
    forward<float>(maps, regions, pooling, out);
  return as_contiguous(out, input.scalar_type());
}

// grad (R, C, h, w) of the output -> gradient (B, C, H, W) of the input.
Tensor roi_align_backward_cpu(const Tensor& grad, const Tensor& rois, int64_t batch,
                              int64_t channels, int64_t height, int64_t width, double spatial_scale,
                              int64_t sampling_ratio, bool aligned) {
  check_roi_align_backward(grad, rois, channels);
  const ScalarType type = compute_type(grad.scalar_type());
  const Tensor pooled = as_contiguous(grad, type), regions = as_contiguous(rois, type);
  const Pooling pooling{grad.size(2), grad.size(3), spatial_scale, sampling_ratio, aligned};
  Tensor out = torch::stable::new_empty(pooled, {batch, channels, height, width});
  if (type == ScalarType::Double)
    backward<double>(pooled, regions, pooling, out);
  else
    backward<float>(pooled, regions, pooling, out);
  return as_contiguous(out, grad.scalar_type());
}

}  // namespace segdet

STABLE_TORCH_LIBRARY_FRAGMENT(segdet, m) {
  m.def(
      "roi_align(Tensor input, Tensor rois, SymInt pooled_height, SymInt pooled_width, "
      "float spatial_scale, int sampling_ratio, bool aligned) -> Tensor");
  m.def(
      "roi_align_backward(Tensor grad, Tensor rois, SymInt batch, SymInt channels, SymInt height, "
      "SymInt width, float spatial_scale, int sampling_ratio, bool aligned) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(segdet, CPU, m) {
  m.impl("roi_align", TORCH_BOX(&segdet::roi_align_cpu));
  m.impl("roi_align_backward", TORCH_BOX(&segdet::roi_align_backward_cpu));
}
