// RoIAlign and its gradient on the CPU, channels-last: a bin is a weighted sum of cells, a cell is
// a run of channels, and the gradient is the transpose of that.
//
// The sums of a block of channels stay in registers. Maps whose planes are contiguous (NCHW) go
// through small channels-last copies that stay in the cache. Whoever writes a value does so alone
// and adds in the order of the regions, so the result does not depend on the number of threads.
#include "roi_align.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "../simd.h"
#include "weights.h"

namespace segdet {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// A channels-last map, or a part of one that starts at a certain cell.
template <class T>
struct Cells {
  T* data;
  int64_t row, column;  // strides; that of the channels is 1
  int64_t first_row = 0, first_column = 0;

  T* at(int64_t y, int64_t x) const {
    return data + (y - first_row) * row + (x - first_column) * column;
  }
};

// Channels whose sums share the registers: four of AVX-512, or eight of AVX2.
template <class T>
constexpr int kBlock = 256 / int(sizeof(T));

// Calls work(width, first) for blocks of channels: `width` is a constant.
template <class T, class Work>
SEGDET_INLINE void for_blocks(int64_t channels, const Work& work) {
  constexpr int kLanes = kBlock<T> / 4;
  int64_t c = 0;
  for (; c + kBlock<T> <= channels; c += kBlock<T>)
    work(std::integral_constant<int, kBlock<T>>(), c);
  for (; c + kLanes <= channels; c += kLanes) work(std::integral_constant<int, kLanes>(), c);
  for (; c < channels; ++c) work(std::integral_constant<int, 1>(), c);
}

// In: type of the arrays, T: type of the arithmetic.
template <class T, class In>
SEGDET_INLINE void pool(const Cells<const In>& map, const Regions<T>& regions, int64_t region,
                        int64_t channels, const Cells<In>& out) {
  for_blocks<T>(channels, [&](auto width, int64_t first) __attribute__((always_inline)) {
    for (int64_t py = 0; py < regions.y.bins(); ++py) {
      const Terms<T> rows = regions.y.of_bin(region, py);
      for (int64_t px = 0; px < regions.x.bins(); ++px) {
        const Terms<T> columns = regions.x.of_bin(region, px);
        T sum[width];
        for (int c = 0; c < width; ++c) sum[c] = T(0);
        for (const Term<T>& y : rows) {
          for (const Term<T>& x : columns) {
            const In* cell = map.at(y.cell, x.cell) + first;
            const T weight = y.weight * x.weight;
            for (int c = 0; c < width; ++c) sum[c] += weight * T(cell[c]);
          }
        }
        In* bin = out.at(py, px) + first;
        for (int c = 0; c < width; ++c) bin[c] = In(sum[c]);
      }
    }
  });
}

// The transpose, for the rows of cells within `band`: adds to `map`.
template <class T, class In>
SEGDET_INLINE void spread(const Cells<const In>& grad, const Regions<T>& regions, int64_t region,
                          int64_t channels, const Span& band, const Cells<T>& map) {
  for (int64_t py = 0; py < regions.y.bins(); ++py) {
    for (const Term<T>& y : regions.y.of_bin(region, py)) {
      if (y.cell < band.low || y.cell >= band.high) continue;
      for (int64_t px = 0; px < regions.x.bins(); ++px) {
        const Terms<T> columns = regions.x.of_bin(region, px);
        for_blocks<T>(channels, [&](auto width, int64_t first) __attribute__((always_inline)) {
          const In* bin = grad.at(py, px) + first;
          T share[width];
          for (int c = 0; c < width; ++c) share[c] = y.weight * T(bin[c]);
          for (const Term<T>& x : columns) {
            T* cell = map.at(y.cell, x.cell) + first;
            const T weight = x.weight;
            for (int c = 0; c < width; ++c) cell[c] += weight * share[c];
          }
        });
      }
    }
  }
}

// to[j][i] = from[i][j], and from one type to the other.
template <class From, class To>
SEGDET_INLINE void transpose(const From* from, int64_t from_stride, int64_t rows, int64_t columns,
                             To* to, int64_t to_stride) {
  for (int64_t j = 0; j < columns; ++j)
    for (int64_t i = 0; i < rows; ++i) to[j * to_stride + i] = To(from[i * from_stride + j]);
}

// target_clones needs plain functions, hence one per type.
#define SEGDET_REGION_KERNELS(In, T)                                                     \
  SEGDET_SIMD void pool_region(const Cells<const In>& map, const Regions<T>& regions,    \
                               int64_t region, int64_t channels, const Cells<In>& out) { \
    pool<T>(map, regions, region, channels, out);                                        \
  }                                                                                      \
  SEGDET_SIMD void spread_region(const Cells<const In>& grad, const Regions<T>& regions, \
                                 int64_t region, int64_t channels, const Span& band,     \
                                 const Cells<T>& map) {                                  \
    spread<T>(grad, regions, region, channels, band, map);                               \
  }
#define SEGDET_TRANSPOSE(From, To)                                                   \
  SEGDET_SIMD void transpose_to(const From* from, int64_t from_stride, int64_t rows, \
                                int64_t columns, To* to, int64_t to_stride) {        \
    transpose(from, from_stride, rows, columns, to, to_stride);                      \
  }
SEGDET_REGION_KERNELS(float, float)
SEGDET_REGION_KERNELS(double, double)
SEGDET_REGION_KERNELS(Half, float)
SEGDET_REGION_KERNELS(BFloat16, float)
SEGDET_TRANSPOSE(float, float)
SEGDET_TRANSPOSE(double, double)
SEGDET_TRANSPOSE(Half, float)
SEGDET_TRANSPOSE(float, Half)
SEGDET_TRANSPOSE(BFloat16, float)
SEGDET_TRANSPOSE(float, BFloat16)
#undef SEGDET_REGION_KERNELS
#undef SEGDET_TRANSPOSE

// Image (or region) i of a tensor whose channels lie next to each other.
template <class T>
Cells<const T> cells_of(const Tensor& tensor, int64_t i) {
  const T* data = static_cast<const T*>(tensor.const_data_ptr());
  return {data + i * tensor.stride(0), tensor.stride(2), tensor.stride(3)};
}

template <class T>
Cells<T> mutable_cells_of(Tensor& tensor, int64_t i) {
  T* data = static_cast<T*>(tensor.mutable_data_ptr());
  return {data + i * tensor.stride(0), tensor.stride(2), tensor.stride(3)};
}

template <class In, class T>
void forward_channels_last(const Tensor& input, const Regions<T>& regions, Tensor& out) {
  const int64_t count = int64_t(regions.by_image.size());
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Region& region = regions.by_image[i];
      pool_region(cells_of<In>(input, region.image), regions, region.index, input.size(1),
                  mutable_cells_of<In>(out, region.index));
    }
  });
}

// As many planes of an NCHW map are turned into a channels-last copy at a time.
constexpr int64_t kPlanes = 32;

// Of all of the map, or where that is less of what each region covers.
template <class In, class T>
void forward_planes(const Tensor& input, const Regions<T>& regions, Tensor& out) {
  const int64_t channels = input.size(1), height = input.size(2), width = input.size(3);
  const int64_t bins_high = out.size(2), bins_wide = out.size(3), bins = bins_high * bins_wide;
  const int64_t groups = (channels + kPlanes - 1) / kPlanes;
  const In* planes = static_cast<const In*>(input.const_data_ptr());
  In* pooled = static_cast<In*>(out.mutable_data_ptr());
  torch::stable::parallel_for(0, input.size(0) * groups, 1, [&](int64_t begin, int64_t end) {
    std::vector<T> copy, tile(bins * kPlanes);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = task / groups, first = task % groups * kPlanes;
      const int64_t count = std::min(kPlanes, channels - first);
      const In* from = planes + (image * channels + first) * height * width;
      const auto [region_begin, region_end] = regions.of_image(image);
      int64_t covered = 0;
      for (const Region* region = region_begin; region != region_end; ++region)
        covered += region->rows.size() * region->columns.size();
      const bool whole = covered >= height * width;
      copy.resize(whole ? height * width * kPlanes : covered * kPlanes);
      Cells<T> cells{copy.data(), width * kPlanes, kPlanes};
      if (whole) transpose_to(from, height * width, count, height * width, cells.data, kPlanes);
      for (const Region* region = region_begin; region != region_end; ++region) {
        if (!whole) {
          const int64_t across = region->columns.size();
          cells = {copy.data(), across * kPlanes, kPlanes, region->rows.low, region->columns.low};
          for (int64_t y = region->rows.low; y < region->rows.high; ++y)
            transpose_to(from + y * width + region->columns.low, height * width, count, across,
                         cells.at(y, region->columns.low), kPlanes);
        }
        pool_region(Cells<const T>{cells.data, cells.row, cells.column, cells.first_row,
                                   cells.first_column},
                    regions, region->index, count,
                    Cells<T>{tile.data(), bins_wide * kPlanes, kPlanes});
        transpose_to(tile.data(), kPlanes, bins, count,
                     pooled + (region->index * channels + first) * bins, bins);
      }
    }
  });
}

// The part of a map that one call of a backward's work fills, small enough for the cache.
constexpr int64_t kBandBytes = 512 * 1024;

template <class In, class T>
void backward(const Tensor& grad, const Regions<T>& regions, bool channels_last, Tensor& out) {
  const int64_t channels = out.size(1), height = out.size(2), width = out.size(3);
  const int64_t groups = (channels + kBlock<T> - 1) / kBlock<T>;
  const int64_t stride = std::min<int64_t>(kBlock<T>, channels);
  const int64_t band_rows =
      std::clamp<int64_t>(kBandBytes / int64_t(sizeof(T)) / (width * stride), 1, height);
  const int64_t bands = (height + band_rows - 1) / band_rows;
  const int64_t tasks = out.size(0) * groups * bands;
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    std::vector<T> sums(band_rows * width * stride);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = task / bands / groups, first = task / bands % groups * kBlock<T>;
      const int64_t count = std::min<int64_t>(kBlock<T>, channels - first);
      const int64_t low = task % bands * band_rows;
      const Span band{low, std::min(low + band_rows, height)};
      const Cells<T> cells{sums.data(), width * stride, stride, band.low, 0};
      std::fill(sums.begin(), sums.end(), T(0));
      const auto [region_begin, region_end] = regions.of_image(image);
      for (const Region* region = region_begin; region != region_end; ++region) {
        if (region->rows.low >= band.high || region->rows.high <= band.low) continue;
        Cells<const In> bins = cells_of<In>(grad, region->index);
        bins.data += first;
        spread_region(bins, regions, region->index, count, band, cells);
      }
      if (channels_last) {
        const Cells<In> map = mutable_cells_of<In>(out, image);
        for (int64_t i = 0; i < band.size() * width; ++i) {
          In* cell = map.at(band.low, 0) + i * map.column + first;
          for (int64_t c = 0; c < count; ++c) cell[c] = In(sums[i * stride + c]);
        }
      } else {
        In* planes = static_cast<In*>(out.mutable_data_ptr()) +
                     ((image * channels + first) * height + band.low) * width;
        transpose_to(sums.data(), stride, band.size() * width, count, planes, height * width);
      }
    }
  });
}

// Whether the channels of each cell lie next to each other; then they do in the result as well.
bool is_channels_last(const Tensor& map) {
  return map.size(1) > 1 && map.stride(1) == 1 && !map.is_contiguous();
}

Tensor empty_map(const Tensor& like, std::array<int64_t, 4> sizes, bool channels_last) {
  using torch::headeronly::MemoryFormat;
  return torch::stable::empty(
      sizes, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
      channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

template <class In>
struct ComputeType {
  using type = float;
};
template <>
struct ComputeType<double> {
  using type = double;
};

// Calls work(In()) with the type of the tensor.
template <class Work>
void for_type(ScalarType type, const Work& work) {
  switch (type) {
    case ScalarType::Double:
      return work(double());
    case ScalarType::Half:
      return work(Half());
    case ScalarType::BFloat16:
      return work(BFloat16());
    default:
      return work(float());
  }
}

}  // namespace

// input (B, C, H, W), rois (R, 5) of (image, x1, y1, x2, y2) in pixels -> (R, C, h, w).
Tensor roi_align_cpu(const Tensor& input, const Tensor& rois, int64_t pooled_height,
                     int64_t pooled_width, double spatial_scale, int64_t sampling_ratio,
                     bool aligned) {
  check_roi_align(input, rois, pooled_height, pooled_width);
  const bool channels_last = is_channels_last(input);
  const bool whole_cells = channels_last || input.size(1) == 1;
  const Tensor maps = channels_last ? input : torch::stable::contiguous(input);
  const Tensor boxes = as_contiguous(rois, compute_type(input.scalar_type()));
  const Pooling pooling{pooled_height, pooled_width, spatial_scale, sampling_ratio, aligned};
  Tensor out =
      empty_map(input, {boxes.size(0), maps.size(1), pooled_height, pooled_width}, channels_last);
  for_type(input.scalar_type(), [&](auto in) {
    using In = decltype(in);
    using T = typename ComputeType<In>::type;
    const auto regions = make_regions<T>(boxes, maps.size(0), maps.size(2), maps.size(3), pooling);
    if (whole_cells)
      forward_channels_last<In>(maps, regions, out);
    else
      forward_planes<In>(maps, regions, out);
  });
  return out;
}

// grad (R, C, h, w) of the output -> gradient (B, C, H, W) of the input.
Tensor roi_align_backward_cpu(const Tensor& grad, const Tensor& rois, int64_t batch,
                              int64_t channels, int64_t height, int64_t width, double spatial_scale,
                              int64_t sampling_ratio, bool aligned, bool /*deterministic*/) {
  check_roi_align_backward(grad, rois, channels, height, width);
  const bool channels_last = is_channels_last(grad);
  const Tensor boxes = as_contiguous(rois, compute_type(grad.scalar_type()));
  const Pooling pooling{grad.size(2), grad.size(3), spatial_scale, sampling_ratio, aligned};
  const Tensor bins = channels_last ? grad
                                    : torch::stable::contiguous(
                                          grad, torch::headeronly::MemoryFormat::ChannelsLast);
  Tensor out = empty_map(grad, {batch, channels, height, width}, channels_last);
  for_type(grad.scalar_type(), [&](auto in) {
    using In = decltype(in);
    using T = typename ComputeType<In>::type;
    const auto regions = make_regions<T>(boxes, batch, height, width, pooling);
    backward<In>(bins, regions, channels_last, out);
  });
  return out;
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
