// RoIAlign and its gradient on the CPU, channels-last: a bin is a weighted sum of cells, a cell is
// a run of channels, and the gradient is the transpose of that.
//
// The sums of a block of channels stay in registers. Maps whose planes are contiguous (NCHW) go
// through small channels-last copies that stay in the cache. Whoever writes a value does so alone
// and adds in an order that only the regions decide, so the result does not depend on the number of
// threads.
#include "roi_align.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "../feature_map.h"
#include "../huge_pages.h"
#include "../simd.h"
#include "weights.h"

namespace segdet::roi_align {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// A channels-last map, or the part of one that starts at a certain cell.
template <class T>
struct Cells {
  T* data;
  int64_t row, column;  // strides; that of the channels is 1
  int64_t first_row = 0, first_column = 0;

  T* at(int64_t y, int64_t x) const {
    return data + (y - first_row) * row + (x - first_column) * column;
  }
  operator Cells<const T>() const { return {data, row, column, first_row, first_column}; }
};

// Channels whose sums share the registers: four of AVX-512, or eight of AVX2.
template <class T>
constexpr int kBlock = 256 / int(sizeof(T));

// Calls work(width, first) for blocks of channels; `width` is a constant of the compiler's.
template <class T, class Work>
SEGDET_INLINE void for_blocks(int64_t channels, const Work& work) {
  constexpr int kRegister = kBlock<T> / 4;
  int64_t c = 0;
  for (; c + kBlock<T> <= channels; c += kBlock<T>)
    work(std::integral_constant<int, kBlock<T>>(), c);
  for (; c + kRegister <= channels; c += kRegister)
    work(std::integral_constant<int, kRegister>(), c);
  for (; c < channels; ++c) work(std::integral_constant<int, 1>(), c);
}

// In: type of the arrays, T: type of the arithmetic.
template <class In, class T>
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

// The transpose: adds to the rows of `map` that lie within `band`.
template <class In, class T>
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

// Cells to cells of another type.
template <class From, class To>
SEGDET_INLINE void convert(const Cells<const From>& from, int64_t rows, int64_t columns,
                           int64_t channels, const Cells<To>& to) {
  for (int64_t y = 0; y < rows; ++y) {
    for (int64_t x = 0; x < columns; ++x) {
      const From* source = from.data + y * from.row + x * from.column;
      To* target = to.data + y * to.row + x * to.column;
      for (int64_t c = 0; c < channels; ++c) target[c] = To(source[c]);
    }
  }
}

// Planes to cells and cells to planes: to[j][i] = from[i][j], stride between the rows of either.
template <class From, class To>
SEGDET_INLINE void transpose(const From* from, int64_t from_stride, int64_t rows, int64_t columns,
                             To* to, int64_t to_stride) {
  for (int64_t j = 0; j < columns; ++j)
    for (int64_t i = 0; i < rows; ++i) to[j * to_stride + i] = To(from[i * from_stride + j]);
}

// target_clones needs plain functions, hence one per type.
#define SEGDET_TYPE_KERNELS(In, T)                                                       \
  SEGDET_SIMD void pool_region(const Cells<const In>& map, const Regions<T>& regions,    \
                               int64_t region, int64_t channels, const Cells<In>& out) { \
    pool(map, regions, region, channels, out);                                           \
  }                                                                                      \
  SEGDET_SIMD void spread_region(const Cells<const In>& grad, const Regions<T>& regions, \
                                 int64_t region, int64_t channels, const Span& band,     \
                                 const Cells<T>& map) {                                  \
    spread(grad, regions, region, channels, band, map);                                  \
  }                                                                                      \
  SEGDET_SIMD void convert_to(const Cells<const T>& from, int64_t rows, int64_t columns, \
                              int64_t channels, const Cells<In>& to) {                   \
    convert(from, rows, columns, channels, to);                                          \
  }
#define SEGDET_TRANSPOSE_KERNEL(From, To)                                            \
  SEGDET_SIMD void transpose_to(const From* from, int64_t from_stride, int64_t rows, \
                                int64_t columns, To* to, int64_t to_stride) {        \
    transpose(from, from_stride, rows, columns, to, to_stride);                      \
  }
SEGDET_TYPE_KERNELS(float, float)
SEGDET_TYPE_KERNELS(double, double)
SEGDET_TYPE_KERNELS(Half, float)
SEGDET_TYPE_KERNELS(BFloat16, float)
SEGDET_TRANSPOSE_KERNEL(float, float)
SEGDET_TRANSPOSE_KERNEL(double, double)
SEGDET_TRANSPOSE_KERNEL(Half, float)
SEGDET_TRANSPOSE_KERNEL(float, Half)
SEGDET_TRANSPOSE_KERNEL(BFloat16, float)
SEGDET_TRANSPOSE_KERNEL(float, BFloat16)
#undef SEGDET_TYPE_KERNELS
#undef SEGDET_TRANSPOSE_KERNEL

// Image (or region) i of a map whose channels lie next to each other, from a channel on.
template <class T>
Cells<T> cells_of(const FeatureMap<T>& map, int64_t i, int64_t channel = 0) {
  return {map.data + i * map.image + channel, map.row, map.column};
}

template <class In, class T>
void forward_channels_last(const Tensor& input, const Regions<T>& regions, Tensor& out) {
  const FeatureMap<const In> maps = read_map<In>(input);
  const FeatureMap<In> pooled = write_map<In>(out);
  const int64_t channels = input.size(1), count = int64_t(regions.by_image.size());
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Region& region = regions.by_image[i];
      pool_region(cells_of(maps, region.image), regions, region.index, channels,
                  cells_of(pooled, region.index));
    }
  });
}

// As many planes of an NCHW map are turned into a channels-last copy at a time.
constexpr int64_t kPlanes = 32;

// Some rows and columns of `count` planes (H, W), in `memory`.
template <class In, class T>
Cells<T> copy_cells(const FeatureMap<const In>& planes, int64_t count, const Span& rows,
                    const Span& columns, std::vector<T>& memory) {
  const std::size_t size = rows.size() * columns.size() * kPlanes;
  if (memory.size() < size) memory.resize(size);
  const Cells<T> cells{memory.data(), columns.size() * kPlanes, kPlanes, rows.low, columns.low};
  for (int64_t y = rows.low; y < rows.high; ++y)
    transpose_to(&planes.at(0, 0, y, columns.low), planes.channel, count, columns.size(),
                 cells.at(y, columns.low), kPlanes);
  return cells;
}

// input and out: NCHW. Copies all of the map, or where that is less what each region covers.
template <class In, class T>
void forward_planes(const Tensor& input, const Regions<T>& regions, Tensor& out) {
  const int64_t channels = input.size(1), height = input.size(2), width = input.size(3);
  const int64_t bins_wide = out.size(3), bins = out.size(2) * bins_wide;
  const int64_t groups = (channels + kPlanes - 1) / kPlanes;
  const FeatureMap<const In> maps = read_map<In>(input);
  const FeatureMap<In> pooled = write_map<In>(out);
  torch::stable::parallel_for(0, input.size(0) * groups, 1, [&](int64_t begin, int64_t end) {
    std::vector<T> copy, result(bins * kPlanes);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = task / groups, first = task % groups * kPlanes;
      const int64_t count = std::min(kPlanes, channels - first);
      FeatureMap<const In> planes = maps;
      planes.data = &maps.at(image, first, 0, 0);
      const auto [region_begin, region_end] = regions.of_image(image);
      int64_t covered = 0;
      for (const Region* region = region_begin; region != region_end; ++region)
        covered += region->rows.size() * region->columns.size();
      const bool whole = covered >= height * width;
      Cells<T> cells{};
      if (whole) cells = copy_cells(planes, count, {0, height}, {0, width}, copy);
      for (const Region* region = region_begin; region != region_end; ++region) {
        if (!whole) cells = copy_cells(planes, count, region->rows, region->columns, copy);
        pool_region(Cells<const T>(cells), regions, region->index, count,
                    Cells<T>{result.data(), bins_wide * kPlanes, kPlanes});
        transpose_to(result.data(), kPlanes, bins, count, &pooled.at(region->index, first, 0, 0),
                     bins);
      }
    }
  });
}

// The part of a map that is summed up at a time fits in the cache.
constexpr int64_t kBandBytes = 512 * 1024;

// grad: its channels lie next to each other; out: they do, or NCHW.
template <class In, class T>
void backward(const Tensor& grad, const Regions<T>& regions, Tensor& out) {
  const int64_t channels = out.size(1), height = out.size(2), width = out.size(3);
  const int64_t stride = std::min<int64_t>(kBlock<T>, channels);
  const int64_t groups = channels == 0 ? 0 : (channels + stride - 1) / stride;
  const int64_t row = width * stride;
  const int64_t band_rows =
      std::clamp<int64_t>(kBandBytes / int64_t(sizeof(T)) / std::max<int64_t>(row, 1), 1, height);
  const int64_t bands = (height + band_rows - 1) / band_rows;
  const FeatureMap<const In> grads = read_map<In>(grad);
  const FeatureMap<In> maps = write_map<In>(out);
  const bool channels_last = maps.channel == 1 && channels > 1;
  torch::stable::parallel_for(0, out.size(0) * groups * bands, 1, [&](int64_t begin, int64_t end) {
    std::vector<T> sums(band_rows * row);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = task / bands / groups, first = task / bands % groups * stride;
      const int64_t count = std::min(stride, channels - first);
      const int64_t low = task % bands * band_rows;
      const Span band{low, std::min(low + band_rows, height)};
      const Cells<T> cells{sums.data(), row, stride, band.low, 0};
      std::fill(sums.begin(), sums.end(), T(0));
      const auto [region_begin, region_end] = regions.of_image(image);
      for (const Region* region = region_begin; region != region_end; ++region) {
        if (region->rows.low >= band.high || region->rows.high <= band.low) continue;
        spread_region(cells_of(grads, region->index, first), regions, region->index, count, band,
                      cells);
      }
      In* target = &maps.at(image, first, band.low, 0);
      if (channels_last)
        convert_to(cells, band.size(), width, count, Cells<In>{target, maps.row, maps.column});
      else
        transpose_to(sums.data(), stride, band.size() * width, count, target, maps.channel);
    }
  });
}

// Calls work(In(), T()) with a tensor's type and the type of its arithmetic.
template <class Work>
void for_type(ScalarType type, const Work& work) {
  switch (type) {
    case ScalarType::Double:
      return work(double(), double());
    case ScalarType::Half:
      return work(Half(), float());
    case ScalarType::BFloat16:
      return work(BFloat16(), float());
    default:
      return work(float(), float());
  }
}

}  // namespace

// input (B, C, H, W), rois (R, 5) of (image, x1, y1, x2, y2) in pixels -> (R, C, h, w).
Tensor roi_align_cpu(const Tensor& input, const Tensor& rois, int64_t pooled_height,
                     int64_t pooled_width, double spatial_scale, int64_t sampling_ratio,
                     bool aligned) {
  check_roi_align(input, rois, pooled_height, pooled_width);
  const Tensor boxes = as_contiguous(rois, compute_type(input.scalar_type()));
  const Pooling pooling{pooled_height, pooled_width, spatial_scale, sampling_ratio, aligned};
  Tensor out = empty_map_like(input, {rois.size(0), input.size(1), pooled_height, pooled_width});
  prefer_huge_pages(out);
  for_type(input.scalar_type(), [&](auto in, auto wide) {
    using In = decltype(in);
    using T = decltype(wide);
    const auto regions =
        make_regions<T>(boxes, input.size(0), input.size(2), input.size(3), pooling);
    if (has_channels_last(input) || input.size(1) == 1)
      forward_channels_last<In>(input, regions, out);
    else
      forward_planes<In>(torch::stable::contiguous(input), regions, out);
  });
  return out;
}

// grad (R, C, h, w) of the output -> gradient (B, C, H, W) of the input.
Tensor roi_align_backward_cpu(const Tensor& grad, const Tensor& rois, int64_t batch,
                              int64_t channels, int64_t height, int64_t width, double spatial_scale,
                              int64_t sampling_ratio, bool aligned, bool /*deterministic*/) {
  using torch::headeronly::MemoryFormat;
  check_roi_align_backward(grad, rois, channels, height, width);
  const Tensor boxes = as_contiguous(rois, compute_type(grad.scalar_type()));
  const Pooling pooling{grad.size(2), grad.size(3), spatial_scale, sampling_ratio, aligned};
  const Tensor cells =
      has_channels_last(grad) ? grad : torch::stable::contiguous(grad, MemoryFormat::ChannelsLast);
  Tensor out = empty_map_like(grad, {batch, channels, height, width});
  prefer_huge_pages(out);
  for_type(grad.scalar_type(), [&](auto in, auto wide) {
    using T = decltype(wide);
    const auto regions = make_regions<T>(boxes, batch, height, width, pooling);
    backward<decltype(in)>(cells, regions, out);
  });
  return out;
}

}  // namespace segdet::roi_align

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
  m.impl("roi_align", TORCH_BOX(&segdet::roi_align::roi_align_cpu));
  m.impl("roi_align_backward", TORCH_BOX(&segdet::roi_align::roi_align_backward_cpu));
}
