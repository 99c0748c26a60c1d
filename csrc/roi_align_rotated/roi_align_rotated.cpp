// RoIAlign of rotated regions and its gradient on the CPU, channels-last: a bin is a weighted sum
// of cells, a cell is a run of channels, and the gradient is the transpose of that.
//
// Forward the threads divide the regions among them, backward the channels: whoever writes a value
// does so alone and adds in the order of the regions, so the result does not depend on their
// number.
#include "roi_align_rotated.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <vector>

#include "../simd.h"

namespace segdet::roi_align_rotated {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

template <class T>
struct Term {
  int64_t cell;  // y * W + x
  T weight;
};

// What every bin of one region takes of which cell, the same for all channels.
template <class T>
struct Terms {
  std::vector<int64_t> begin;  // (bins + 1,): terms of bin b are [begin[b], begin[b + 1])
  std::vector<Term<T>> terms;
};

struct Pooling {
  int64_t batch, height, width, pooled_height, pooled_width;
  double spatial_scale;
  int64_t sampling_ratio;
};

// Works out the terms of regions, one after the other.
template <class T>
class TermFinder {
 public:
  explicit TermFinder(const Pooling& in) : in_(in), share_(in.height * in.width) {}

  void find(const T* roi, Terms<T>& out) {
    out.begin.assign(1, 0);
    out.terms.clear();
    double values[6];
    std::copy_n(roi, 6, values);
    const auto region =
        make_region<double>(values, kFarthest<T>, in_.spatial_scale, in_.sampling_ratio,
                            in_.pooled_height, in_.pooled_width, in_.height, in_.width);
    for (int64_t py = 0; py < in_.pooled_height; ++py) {
      for (int64_t px = 0; px < in_.pooled_width; ++px) {
        add_bin(region, py, px);
        for (const int64_t cell : cells_) {
          out.terms.push_back({cell, T(share_[cell] / sample_count(region))});
          share_[cell] = 0;
        }
        cells_.clear();
        out.begin.push_back(int64_t(out.terms.size()));
      }
    }
  }

 private:
  void add_bin(const Region<double>& region, int64_t py, int64_t px) {
    const SampleRange rows = samples_beside(region.map_y, region.y, py);
    const SampleRange columns = samples_beside(region.map_x, region.x, px);
    for (int64_t iy = rows.begin; iy < rows.end; ++iy) {
      for (int64_t ix = columns.begin; ix < columns.end; ++ix) {
        Tap<double> y, x;
        if (!taps_at(region, sample_position(region.y, py, iy), sample_position(region.x, px, ix),
                     in_.height, in_.width, y, x))
          continue;
        add(y.low, x.low, (1 - y.fraction) * (1 - x.fraction));
        add(y.low, x.high, (1 - y.fraction) * x.fraction);
        add(y.high, x.low, y.fraction * (1 - x.fraction));
        add(y.high, x.high, y.fraction * x.fraction);
      }
    }
  }

  void add(int64_t y, int64_t x, double weight) {
    if (weight == 0) return;
    double& share = share_[y * in_.width + x];
    if (share == 0) cells_.push_back(y * in_.width + x);
    share += weight;
  }

  Pooling in_;
  std::vector<double> share_;   // (H * W,) of the bin at hand, 0 for all other cells
  std::vector<int64_t> cells_;  // whose share is not 0
};

constexpr int64_t kLanes = 32;  // channels whose sums share the registers

// map: channels [0, count) of the cells of one image; bins (h * w, channels).
template <int64_t Count, class In, class T>
SEGDET_INLINE void pool_lanes(const In* map, int64_t channels, const Terms<T>& terms, In* bins,
                              int64_t count) {
  const int64_t lanes = Count > 0 ? Count : count;
  for (std::size_t bin = 0; bin + 1 < terms.begin.size(); ++bin) {
    T sum[kLanes] = {};
    for (int64_t i = terms.begin[bin]; i < terms.begin[bin + 1]; ++i) {
      const In* cell = map + terms.terms[i].cell * channels;
      const T weight = terms.terms[i].weight;
      for (int64_t k = 0; k < lanes; ++k) sum[k] += weight * T(cell[k]);
    }
    for (int64_t k = 0; k < lanes; ++k) bins[bin * channels + k] = In(sum[k]);
  }
}

template <int64_t Count, class In, class T>
SEGDET_INLINE void spread_lanes(const In* bins, int64_t channels, const Terms<T>& terms, T* map,
                                int64_t count) {
  const int64_t lanes = Count > 0 ? Count : count;
  for (std::size_t bin = 0; bin + 1 < terms.begin.size(); ++bin) {
    T share[kLanes];
    for (int64_t k = 0; k < lanes; ++k) share[k] = T(bins[bin * channels + k]);
    for (int64_t i = terms.begin[bin]; i < terms.begin[bin + 1]; ++i) {
      T* cell = map + terms.terms[i].cell * channels;
      const T weight = terms.terms[i].weight;
      for (int64_t k = 0; k < lanes; ++k) cell[k] += weight * share[k];
    }
  }
}

// target_clones needs plain functions, hence one per type. count: at most kLanes.
#define SEGDET_ROTATED_KERNELS(In, T)                                                      \
  SEGDET_SIMD void pool(const In* map, int64_t channels, const Terms<T>& terms, In* bins,  \
                        int64_t count) {                                                   \
    if (count == kLanes) return pool_lanes<kLanes>(map, channels, terms, bins, count);     \
    pool_lanes<0>(map, channels, terms, bins, count);                                      \
  }                                                                                        \
  SEGDET_SIMD void spread(const In* bins, int64_t channels, const Terms<T>& terms, T* map, \
                          int64_t count) {                                                 \
    if (count == kLanes) return spread_lanes<kLanes>(bins, channels, terms, map, count);   \
    spread_lanes<0>(bins, channels, terms, map, count);                                    \
  }
SEGDET_ROTATED_KERNELS(float, float)
SEGDET_ROTATED_KERNELS(double, double)
SEGDET_ROTATED_KERNELS(Half, float)
SEGDET_ROTATED_KERNELS(BFloat16, float)
#undef SEGDET_ROTATED_KERNELS

// Rows of rois, as whole numbers.
template <class T>
std::vector<int64_t> images_of(const Tensor& rois, int64_t batch) {
  std::vector<int64_t> images(rois.size(0));
  const T* roi = rois.const_data_ptr<T>();
  for (int64_t r = 0; r < rois.size(0); ++r, roi += 6) {
    SEGDET_CHECK(roi[0] >= 0 && roi[0] < T(batch), "segdet::roi_align_rotated: rois[", r,
                 ", 0] is the image's index in the batch and must be in [0, ", batch, "), is ",
                 roi[0]);
    images[r] = int64_t(roi[0]);
  }
  return images;
}

// input (B, C, H, W) and out (R, C, h, w) with channels last, rois (R, 6).
template <class In, class T>
void forward(const Tensor& input, const Tensor& rois, const Pooling& in, Tensor& out) {
  const int64_t channels = input.size(1), bins = in.pooled_height * in.pooled_width;
  const std::vector<int64_t> images = images_of<T>(rois, in.batch);
  const In* maps = static_cast<const In*>(input.const_data_ptr());
  const T* roi = rois.const_data_ptr<T>();
  In* pooled = static_cast<In*>(out.mutable_data_ptr());
  torch::stable::parallel_for(0, rois.size(0), 1, [&](int64_t begin, int64_t end) {
    TermFinder<T> finder(in);
    Terms<T> terms;
    for (int64_t r = begin; r < end; ++r) {
      finder.find(roi + 6 * r, terms);
      const In* map = maps + images[r] * in.height * in.width * channels;
      for (int64_t c = 0; c < channels; c += kLanes)
        pool(map + c, channels, terms, pooled + r * bins * channels + c,
             std::min(kLanes, channels - c));
    }
  });
}

// grad (R, C, h, w) and out (B, C, H, W) with channels last; out of type T, all zeros.
template <class In, class T>
void backward(const Tensor& grad, const Tensor& rois, const Pooling& in, Tensor& out) {
  const int64_t channels = grad.size(1), bins = in.pooled_height * in.pooled_width;
  const std::vector<int64_t> images = images_of<T>(rois, in.batch);
  const In* pooled = static_cast<const In*>(grad.const_data_ptr());
  const T* roi = rois.const_data_ptr<T>();
  T* maps = out.mutable_data_ptr<T>();
  std::vector<Terms<T>> terms(rois.size(0));
  torch::stable::parallel_for(0, rois.size(0), 1, [&](int64_t begin, int64_t end) {
    TermFinder<T> finder(in);
    for (int64_t r = begin; r < end; ++r) finder.find(roi + 6 * r, terms[r]);
  });
  const int64_t blocks = (channels + kLanes - 1) / kLanes;
  torch::stable::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin * kLanes; c < std::min(end * kLanes, channels); c += kLanes)
      for (int64_t r = 0; r < rois.size(0); ++r)
        spread(pooled + r * bins * channels + c, channels, terms[r],
               maps + images[r] * in.height * in.width * channels + c,
               std::min(kLanes, channels - c));
  });
}

// (N, H, W, C) memory of a map (N, C, H, W).
Tensor empty_channels_last(std::array<int64_t, 4> sizes, ScalarType type) {
  return torch::stable::empty(sizes, type, std::nullopt, std::nullopt, std::nullopt,
                              torch::headeronly::MemoryFormat::ChannelsLast);
}

Tensor as_channels_last(const Tensor& map) {
  return torch::stable::contiguous(map, torch::headeronly::MemoryFormat::ChannelsLast);
}

}  // namespace

// input (B, C, H, W), rois (R, 6) of (image, centre x, centre y, width, height, degrees) in pixels
// -> (R, C, h, w).
Tensor roi_align_rotated_cpu(const Tensor& input, const Tensor& rois, int64_t pooled_height,
                             int64_t pooled_width, double spatial_scale, int64_t sampling_ratio) {
  check_forward(input, rois, pooled_height, pooled_width);
  const Tensor maps = as_channels_last(input);
  const Tensor boxes = as_contiguous(rois, compute_type(input.scalar_type()));
  const Pooling in{maps.size(0), maps.size(2),  maps.size(3),  pooled_height,
                   pooled_width, spatial_scale, sampling_ratio};
  Tensor out = empty_channels_last({boxes.size(0), maps.size(1), pooled_height, pooled_width},
                                   input.scalar_type());
  switch (input.scalar_type()) {
    case ScalarType::Double:
      forward<double, double>(maps, boxes, in, out);
      break;
    case ScalarType::Half:
      forward<Half, float>(maps, boxes, in, out);
      break;
    case ScalarType::BFloat16:
      forward<BFloat16, float>(maps, boxes, in, out);
      break;
    default:
      forward<float, float>(maps, boxes, in, out);
  }
  return has_channels_last(input) ? out : torch::stable::contiguous(out);
}

// grad (R, C, h, w) of the output -> gradient (B, C, H, W) of the input.
Tensor roi_align_rotated_backward_cpu(const Tensor& grad, const Tensor& rois, int64_t batch,
                                      int64_t channels, int64_t height, int64_t width,
                                      double spatial_scale, int64_t sampling_ratio,
                                      bool /*deterministic*/) {
  check_backward(grad, rois, channels, height, width);
  const ScalarType type = compute_type(grad.scalar_type());
  const Tensor bins = as_channels_last(grad), boxes = as_contiguous(rois, type);
  const Pooling in{batch, height, width, grad.size(2), grad.size(3), spatial_scale, sampling_ratio};
  Tensor out = empty_channels_last({batch, channels, height, width}, type);
  torch::stable::zero_(out);
  switch (grad.scalar_type()) {
    case ScalarType::Double:
      backward<double, double>(bins, boxes, in, out);
      break;
    case ScalarType::Half:
      backward<Half, float>(bins, boxes, in, out);
      break;
    case ScalarType::BFloat16:
      backward<BFloat16, float>(bins, boxes, in, out);
      break;
    default:
      backward<float, float>(bins, boxes, in, out);
  }
  const Tensor result =
      type == grad.scalar_type() ? out : torch::stable::to(out, grad.scalar_type());
  return has_channels_last(grad) ? result : torch::stable::contiguous(result);
}

}  // namespace segdet::roi_align_rotated

STABLE_TORCH_LIBRARY_FRAGMENT(segdet, m) {
  m.def(
      "roi_align_rotated(Tensor input, Tensor rois, SymInt pooled_height, SymInt pooled_width, "
      "float spatial_scale, int sampling_ratio) -> Tensor");
  m.def(
      "roi_align_rotated_backward(Tensor grad, Tensor rois, SymInt batch, SymInt channels, SymInt "
      "height, SymInt width, float spatial_scale, int sampling_ratio, bool deterministic) -> "
      "Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(segdet, CPU, m) {
  m.impl("roi_align_rotated", TORCH_BOX(&segdet::roi_align_rotated::roi_align_rotated_cpu));
  m.impl("roi_align_rotated_backward",
         TORCH_BOX(&segdet::roi_align_rotated::roi_align_rotated_backward_cpu));
}
