// RoIAlign and its gradient on the CPU.
//
// Bilinear samples averaged over a bin are a weighted sum of cells, and the weights are a product
// of one factor per row and one per column. So a region is two short lists of factors, worked out
// once for all channels, and pooling one channel is: weighted sums of rows (contiguous,
// vectorised), then weighted sums of the few columns. The gradient is the transpose of that.
//
// Both directions go channel by channel: its map stays in the cache while its regions are pooled,
// and one thread alone adds to a channel's gradient, region after region, so the result does not
// depend on the number of threads. A few channels share one walk over the lists.
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
  for (int64_t r = 0; r < rois.size(0); ++r, roi += 5) {
    SEGDET_CHECK(roi[0] >= 0 && roi[0] < T(batch), "segdet::roi_align: rois[", r,
                 ", 0] is the image's index in the batch and must be in [0, ", batch, "), is ",
                 roi[0]);
    const auto y = make_axis<double>(roi[2], roi[4], pooling.spatial_scale, pooling.aligned,
                                     pooling.pooled_height, pooling.sampling_ratio);
    const auto x = make_axis<double>(roi[1], roi[3], pooling.spatial_scale, pooling.aligned,
                                     pooling.pooled_width, pooling.sampling_ratio);
    images[int64_t(roi[0])].push_back({r, axis_weights<T>(y, pooling.pooled_height, height),
                                       axis_weights<T>(x, pooling.pooled_width, width)});
  }
  return images;
}

// As many channels as share one walk over the lists of factors.
constexpr int64_t kChannels = 4;

// The channels of one image that one call works on.
template <class T>
struct Channels {
  int64_t height, width;
  int64_t bins;           // of one region and channel, h * w
  int64_t region_stride;  // from a region's pooled values to the next region's
  T* rows;                // scratch, (kChannels, W)
};

// planes (K, H, W) -> pooled: (K, h, w) of the first region.
template <int64_t K, class T>
SEGDET_INLINE void pool(const T* planes, const std::vector<Region<T>>& regions,
                        const Channels<T>& in, T* pooled) {
  for (const Region<T>& region : regions) {
    const AxisWeights<T>&ys = region.y, &xs = region.x;
    const int64_t span = xs.high - xs.low;
    T* out = pooled + region.index * in.region_stride;
    for (std::size_t py = 0; py + 1 < ys.begin.size(); ++py) {
      for (int64_t k = 0; k < K; ++k) {
        T* row = in.rows + k * in.width;
        std::fill(row, row + span, T(0));
        for (int32_t i = ys.begin[py]; i < ys.begin[py + 1]; ++i) {
          const T* cells = planes + (k * in.height + ys.terms[i].cell) * in.width + xs.low;
          const T weight = ys.terms[i].weight;
          for (int64_t x = 0; x < span; ++x) row[x] += weight * cells[x];
        }
      }
      for (std::size_t px = 0; px + 1 < xs.begin.size(); ++px, ++out) {
        T sum[K] = {};
        for (int32_t i = xs.begin[px]; i < xs.begin[px + 1]; ++i) {
          const T* cell = in.rows + (xs.terms[i].cell - xs.low);
          for (int64_t k = 0; k < K; ++k) sum[k] += xs.terms[i].weight * cell[k * in.width];
        }
        for (int64_t k = 0; k < K; ++k) out[k * in.bins] = sum[k];
      }
    }
  }
}

// The transpose: planes (K, H, W) become the sum of what the regions' gradients give each cell.
template <int64_t K, class T>
SEGDET_INLINE void spread(const T* pooled, const std::vector<Region<T>>& regions,
                          const Channels<T>& in, T* planes) {
  std::fill(planes, planes + K * in.height * in.width, T(0));
  for (const Region<T>& region : regions) {
    const AxisWeights<T>&ys = region.y, &xs = region.x;
    const int64_t span = xs.high - xs.low;
    const T* grad = pooled + region.index * in.region_stride;
    for (std::size_t py = 0; py + 1 < ys.begin.size(); ++py) {
      for (int64_t k = 0; k < K; ++k)
        std::fill(in.rows + k * in.width, in.rows + k * in.width + span, T(0));
      for (std::size_t px = 0; px + 1 < xs.begin.size(); ++px, ++grad) {
        for (int32_t i = xs.begin[px]; i < xs.begin[px + 1]; ++i) {
          T* cell = in.rows + (xs.terms[i].cell - xs.low);
          for (int64_t k = 0; k < K; ++k)
            cell[k * in.width] += xs.terms[i].weight * grad[k * in.bins];
        }
      }
      for (int64_t k = 0; k < K; ++k) {
        const T* row = in.rows + k * in.width;
        for (int32_t i = ys.begin[py]; i < ys.begin[py + 1]; ++i) {
          T* cells = planes + (k * in.height + ys.terms[i].cell) * in.width + xs.low;
          const T weight = ys.terms[i].weight;
          for (int64_t x = 0; x < span; ++x) cells[x] += weight * row[x];
        }
      }
    }
  }
}

// target_clones needs plain functions, hence one per type. count: at most kChannels.
#define SEGDET_CHANNEL_KERNELS(T)                                                                \
  SEGDET_SIMD void pool_channels(int64_t count, const T* planes,                                 \
                                 const std::vector<Region<T>>& regions, const Channels<T>& in,   \
                                 T* pooled) {                                                    \
    if (count == kChannels) return pool<kChannels>(planes, regions, in, pooled);                 \
    for (int64_t k = 0; k < count; ++k)                                                          \
      pool<1>(planes + k * in.height * in.width, regions, in, pooled + k * in.bins);             \
  }                                                                                              \
  SEGDET_SIMD void spread_channels(int64_t count, const T* pooled,                               \
                                   const std::vector<Region<T>>& regions, const Channels<T>& in, \
                                   T* planes) {                                                  \
    if (count == kChannels) return spread<kChannels>(pooled, regions, in, planes);               \
    for (int64_t k = 0; k < count; ++k)                                                          \
      spread<1>(pooled + k * in.bins, regions, in, planes + k * in.height * in.width);           \
  }
SEGDET_CHANNEL_KERNELS(float)
SEGDET_CHANNEL_KERNELS(double)
#undef SEGDET_CHANNEL_KERNELS

// Calls work(image, first channel, count, in) for groups of channels, on all threads.
template <class T, class Work>
void for_channels(int64_t batch, int64_t channels, const Channels<T>& shape, const Work& work) {
  const int64_t groups = (channels + kChannels - 1) / kChannels;
  torch::stable::parallel_for(0, batch * groups, 1, [&](int64_t begin, int64_t end) {
    std::vector<T> rows(kChannels * shape.width);
    Channels<T> in = shape;
    in.rows = rows.data();
    for (int64_t g = begin; g < end; ++g) {
      const int64_t first = g % groups * kChannels;
      work(g / groups, first, std::min(kChannels, channels - first), in);
    }
  });
}

template <class T>
void forward(const Tensor& input, const Tensor& rois, const Pooling& pooling, Tensor& out) {
  const int64_t batch = input.size(0), channels = input.size(1);
  const int64_t height = input.size(2), width = input.size(3);
  const int64_t bins = pooling.pooled_height * pooling.pooled_width;
  const auto images = regions_by_image<T>(rois, batch, height, width, pooling);
  const T* planes = input.const_data_ptr<T>();
  T* pooled = out.mutable_data_ptr<T>();
  const Channels<T> shape{height, width, bins, channels * bins, nullptr};
  for_channels(batch, channels, shape, [&](int64_t image, int64_t first, int64_t count, auto& in) {
    pool_channels(count, planes + (image * channels + first) * height * width, images[image], in,
                  pooled + first * bins);
  });
}

template <class T>
void backward(const Tensor& grad, const Tensor& rois, const Pooling& pooling, Tensor& out) {
  const int64_t batch = out.size(0), channels = out.size(1);
  const int64_t height = out.size(2), width = out.size(3);
  const int64_t bins = pooling.pooled_height * pooling.pooled_width;
  const auto images = regions_by_image<T>(rois, batch, height, width, pooling);
  const T* pooled = grad.const_data_ptr<T>();
  T* planes = out.mutable_data_ptr<T>();
  const Channels<T> shape{height, width, bins, channels * bins, nullptr};
  for_channels(batch, channels, shape, [&](int64_t image, int64_t first, int64_t count, auto& in) {
    spread_channels(count, pooled + first * bins, images[image], in,
                    planes + (image * channels + first) * height * width);
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
                              int64_t sampling_ratio, bool aligned, bool /*deterministic*/) {
  check_roi_align_backward(grad, rois, channels, height, width);
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
      "SymInt width, float spatial_scale, int sampling_ratio, bool aligned, bool deterministic) -> "
      "Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(segdet, CPU, m) {
  m.impl("roi_align", TORCH_BOX(&segdet::roi_align_cpu));
  m.impl("roi_align_backward", TORCH_BOX(&segdet::roi_align_backward_cpu));
}
