// Position-sensitive pooling on the CPU, by parts of the map that stay in the cache.
//
// A part is what one row of groups reads of some channels of one image. It is copied so that the
// channels of a cell are next to each other, one vector of them; then all regions of the image pool
// their bins from it. The gradient goes the same way back. Each value of the result, forward and
// backward, belongs to one part, so threads share nothing and their number changes no bit.
#include "position_sensitive.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "../simd.h"

namespace segdet::position_sensitive {
namespace {

constexpr int64_t kLanes = 16;  // channels of a part

struct Part {
  int64_t image, first, count;  // channels [first, first + count) of the result
  int64_t group;                // row of groups, which has these rows of bins:
  int64_t bins_begin, bins_end;
};

// cells (group_width, H, W, kLanes); bins (rows of the part, w, kLanes), of one region.
template <class T>
SEGDET_INLINE void pool_bins(const T* cells, const Regions<T>& regions, int64_t region,
                             const Shape& shape, const Part& part, T* bins) {
  for (int64_t py = part.bins_begin; py < part.bins_end; ++py) {
    const auto rows = regions.y.of(region, py);
    for (int64_t px = 0; px < shape.pooled_width; ++px, bins += kLanes) {
      const auto columns = regions.x.of(region, px);
      const int64_t group = group_of(px, shape.group_width, shape.pooled_width);
      const T* plane = cells + group * shape.height * shape.width * kLanes;
      T sum[kLanes] = {};
      for (const Term<T>& y : rows) {
        const T* row = plane + y.cell * shape.width * kLanes;
        for (const Term<T>& x : columns) {
          const T* cell = row + x.cell * kLanes;
          const T weight = y.weight * x.weight;
          for (int64_t k = 0; k < kLanes; ++k) sum[k] += weight * cell[k];
        }
      }
      const T count = rows.count * columns.count;
      for (int64_t k = 0; k < kLanes; ++k) bins[k] = sum[k] / count;
    }
  }
}

template <class T>
SEGDET_INLINE void spread_bins(const T* bins, const Regions<T>& regions, int64_t region,
                               const Shape& shape, const Part& part, T* cells) {
  for (int64_t py = part.bins_begin; py < part.bins_end; ++py) {
    const auto rows = regions.y.of(region, py);
    for (int64_t px = 0; px < shape.pooled_width; ++px, bins += kLanes) {
      const auto columns = regions.x.of(region, px);
      const int64_t group = group_of(px, shape.group_width, shape.pooled_width);
      T* plane = cells + group * shape.height * shape.width * kLanes;
      const T count = rows.count * columns.count;
      T share[kLanes];
      for (int64_t k = 0; k < kLanes; ++k) share[k] = bins[k] / count;
      for (const Term<T>& y : rows) {
        T* row = plane + y.cell * shape.width * kLanes;
        for (const Term<T>& x : columns) {
          T* cell = row + x.cell * kLanes;
          const T weight = y.weight * x.weight;
          for (int64_t k = 0; k < kLanes; ++k) cell[k] += weight * share[k];
        }
      }
    }
  }
}

// target_clones needs plain functions, hence one per type.
#define SEGDET_BIN_KERNELS(T)                                                              \
  SEGDET_SIMD void pool_region(const T* cells, const Regions<T>& regions, int64_t region,  \
                               const Shape& shape, const Part& part, T* bins) {            \
    pool_bins(cells, regions, region, shape, part, bins);                                  \
  }                                                                                        \
  SEGDET_SIMD void spread_region(const T* bins, const Regions<T>& regions, int64_t region, \
                                 const Shape& shape, const Part& part, T* cells) {         \
    spread_bins(bins, regions, region, shape, part, cells);                                \
  }
SEGDET_BIN_KERNELS(float)
SEGDET_BIN_KERNELS(double)
#undef SEGDET_BIN_KERNELS

// Calls work(part) for all parts, on all threads; make_work() makes one for each thread.
template <class MakeWork>
void for_parts(const Shape& shape, const MakeWork& make_work) {
  const int64_t blocks = (shape.channels + kLanes - 1) / kLanes, rows = shape.group_height;
  const auto first_bin = [&](int64_t group) {  // the first that group_of gives this group
    return (group * shape.pooled_height + rows - 1) / rows;
  };
  torch::stable::parallel_for(0, shape.batch * blocks * rows, 1, [&](int64_t begin, int64_t end) {
    auto work = make_work();
    for (int64_t i = begin; i < end; ++i) {
      const int64_t group = i % rows, first = i / rows % blocks * kLanes;
      work(Part{i / rows / blocks, first, std::min(kLanes, shape.channels - first), group,
                first_bin(group), first_bin(group + 1)});
    }
  });
}

// Calls copy(of the map, of the cells) for every value of a part, in the order of the map's memory.
template <class In, class T, class Copy>
void for_cells(const FeatureMap<In>& map, const Shape& shape, const Part& part, T* cells,
               const Copy& copy) {
  const int64_t size = shape.height * shape.width, group = shape.group_height * shape.group_width;
  const int64_t first = part.first * group + part.group * shape.group_width;
  const auto copy_row = [&](int64_t y, int64_t gw) {
    In* from = &map.at(part.image, first + gw, y, 0);
    T* to = cells + (gw * size + y * shape.width) * kLanes;
    for (int64_t x = 0; x < shape.width; ++x)
      for (int64_t k = 0; k < part.count; ++k)
        copy(from[x * map.column + k * group * map.channel], to[x * kLanes + k]);
  };
  const auto copy_cell = [&](int64_t y, int64_t x) {
    In* from = &map.at(part.image, first, y, x);
    T* to = cells + (y * shape.width + x) * kLanes;
    for (int64_t k = 0; k < part.count; ++k)
      for (int64_t gw = 0; gw < shape.group_width; ++gw)
        copy(from[(k * group + gw) * map.channel], to[gw * size * kLanes + k]);
  };
  if (map.channel == 1) {
    for (int64_t y = 0; y < shape.height; ++y)
      for (int64_t x = 0; x < shape.width; ++x) copy_cell(y, x);
  } else {
    for (int64_t gw = 0; gw < shape.group_width; ++gw)
      for (int64_t y = 0; y < shape.height; ++y) copy_row(y, gw);
  }
}

// Likewise for the bins of one region.
template <class In, class T, class Copy>
void for_bins(const FeatureMap<In>& map, const Shape& shape, const Part& part, int64_t region,
              T* bins, const Copy& copy) {
  const int64_t count = (part.bins_end - part.bins_begin) * shape.pooled_width;
  In* from = &map.at(region, part.first, part.bins_begin, 0);
  if (map.channel == 1) {
    for (int64_t i = 0; i < count; ++i)
      for (int64_t k = 0; k < part.count; ++k) copy(from[i * map.column + k], bins[i * kLanes + k]);
  } else {
    for (int64_t k = 0; k < part.count; ++k)
      for (int64_t i = 0; i < count; ++i)
        copy(from[k * map.channel + i * map.column], bins[i * kLanes + k]);
  }
}

template <class T>
std::vector<T> cells_of_part(const Shape& shape) {
  return std::vector<T>(shape.group_width * shape.height * shape.width * kLanes);
}

template <class T>
std::vector<T> bins_of_part(const Shape& shape) {
  const int64_t rows = (shape.pooled_height + shape.group_height - 1) / shape.group_height;
  return std::vector<T>(rows * shape.pooled_width * kLanes);
}

template <class In, class T>
void pool_as(const Tensor& input, const Regions<T>& regions, const Shape& shape, Tensor& out) {
  const FeatureMap<const In> map = read_map<In>(input);
  const FeatureMap<In> pooled = write_map<In>(out);
  for_parts(shape, [&] {
    return [&, cells = cells_of_part<T>(shape),
            bins = bins_of_part<T>(shape)](const Part& part) mutable {
      if (regions.of_image[part.image].empty()) return;
      for_cells(map, shape, part, cells.data(), [](const In& from, T& to) { to = T(from); });
      for (const int64_t region : regions.of_image[part.image]) {
        pool_region(cells.data(), regions, region, shape, part, bins.data());
        for_bins(pooled, shape, part, region, bins.data(), [](In& to, T from) { to = In(from); });
      }
    };
  });
}

template <class In, class T>
void spread_as(const Tensor& grad, const Regions<T>& regions, const Shape& shape, Tensor& out) {
  const FeatureMap<const In> pooled = read_map<In>(grad);
  const FeatureMap<In> map = write_map<In>(out);
  for_parts(shape, [&] {
    return [&, cells = cells_of_part<T>(shape),
            bins = bins_of_part<T>(shape)](const Part& part) mutable {
      std::fill(cells.begin(), cells.end(), T(0));
      for (const int64_t region : regions.of_image[part.image]) {
        for_bins(pooled, shape, part, region, bins.data(),
                 [](const In& from, T& to) { to = T(from); });
        spread_region(bins.data(), regions, region, shape, part, cells.data());
      }
      for_cells(map, shape, part, cells.data(), [](In& to, T from) { to = In(from); });
    };
  });
}

}  // namespace

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

template <>
void pool(const Tensor& input, const Regions<double>& regions, const Shape& shape, Tensor& out) {
  pool_as<double>(input, regions, shape, out);
}

template <>
void pool(const Tensor& input, const Regions<float>& regions, const Shape& shape, Tensor& out) {
  switch (input.scalar_type()) {
    case ScalarType::Half:
      return pool_as<Half>(input, regions, shape, out);
    case ScalarType::BFloat16:
      return pool_as<BFloat16>(input, regions, shape, out);
    default:
      return pool_as<float>(input, regions, shape, out);
  }
}

template <>
void spread(const Tensor& grad, const Regions<double>& regions, const Shape& shape, Tensor& out) {
  spread_as<double>(grad, regions, shape, out);
}

template <>
void spread(const Tensor& grad, const Regions<float>& regions, const Shape& shape, Tensor& out) {
  switch (grad.scalar_type()) {
    case ScalarType::Half:
      return spread_as<Half>(grad, regions, shape, out);
    case ScalarType::BFloat16:
      return spread_as<BFloat16>(grad, regions, shape, out);
    default:
      return spread_as<float>(grad, regions, shape, out);
  }
}

}  // namespace segdet::position_sensitive
