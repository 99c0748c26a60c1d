// Samples of a map at points, and their gradients, on the CPU. Which cells a point takes is worked
// out once for all channels.
//
// Of a channels-last map the threads take points: a cell is a run of channels, and a tile of
// samples is turned around in a buffer. Of any other they take channels, whose planes stay in the
// cache. Gradients of the map take channels in both, so nobody else writes a cell, and points are
// added in their order: no result depends on the number of threads.
#include "point_sample.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "../huge_pages.h"
#include "../simd.h"

namespace segdet::point_sample {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

constexpr int64_t kTile = 64;    // points
constexpr int64_t kLanes = 128;  // channels, where they lie next to each other
constexpr int64_t kPlanes = 1;   // channels, where they do not

// Of a buffer of kLanes values: an odd number of cache lines, so that a column of such rows does
// not fall on the same few places of the cache.
template <class T>
constexpr int64_t kRow = kLanes + 64 / sizeof(T);

struct Shape {
  int64_t batch, channels, height, width, points;
  bool align_corners;

  int64_t cells() const { return height * width; }
  int64_t tiles() const { return (points + kTile - 1) / kTile; }
};

// What kTile points or fewer take.
template <class T>
struct Tile {
  int64_t count;
  int32_t cell[4][kTile];  // y * W + x
  T weight[4][kTile];
  bool near[kTile];  // the map; what is not near gets zeros
};

// Tile t of one image; points (P, 2).
template <class T>
void fill_tile(const T* points, int64_t t, const Shape& in, Tile<T>& tile) {
  tile.count = std::min(kTile, in.points - t * kTile);
  for (int64_t p = 0; p < tile.count; ++p) {
    const T* point = points + 2 * (t * kTile + p);
    Pair<T> y{}, x{};
    tile.near[p] = pair_at(point[0], in.width, in.align_corners, x) &&
                   pair_at(point[1], in.height, in.align_corners, y);
    if (!tile.near[p]) x = y = {};
    for (int64_t i = 0; i < 4; ++i) {
      tile.cell[i][p] = int32_t(y.cell[i / 2] * in.width + x.cell[i % 2]);
      tile.weight[i][p] = y.weight[i / 2] * x.weight[i % 2];
    }
  }
}

// All tiles of all images. points (N, P, 2).
template <class T>
std::vector<Tile<T>> make_tiles(const T* points, const Shape& in) {
  std::vector<Tile<T>> tiles(in.batch * in.tiles());
  torch::stable::parallel_for(0, int64_t(tiles.size()), 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      fill_tile(points + i / in.tiles() * in.points * 2, i % in.tiles(), in, tiles[i]);
  });
  return tiles;
}

// plane (H, W) -> out (count,).
template <class In, class T>
SEGDET_INLINE void gather_plane(const In* plane, const Tile<T>& tile, In* out) {
  for (int64_t p = 0; p < tile.count; ++p) {
    T sum = tile.weight[0][p] * T(plane[tile.cell[0][p]]);
    for (int64_t i = 1; i < 4; ++i) sum += tile.weight[i][p] * T(plane[tile.cell[i][p]]);
    out[p] = In(tile.near[p] ? sum : T(0));
  }
}

template <class In, class T>
SEGDET_INLINE void scatter_plane(const In* grad, const Tile<T>& tile, T* plane) {
  for (int64_t p = 0; p < tile.count; ++p) {
    if (!tile.near[p]) continue;
    for (int64_t i = 0; i < 4; ++i) plane[tile.cell[i][p]] += tile.weight[i][p] * T(grad[p]);
  }
}

// map: channels [0, count) of the cells of one image, count at most kLanes; out (count, P).
template <int64_t Count, class In, class T>
SEGDET_INLINE void gather_lanes(const In* map, int64_t channels, const Tile<T>& tile,
                                int64_t points, In* out, int64_t count) {
  const int64_t lanes = Count > 0 ? Count : count;
  In samples[kTile][kRow<In>];
  for (int64_t p = 0; p < tile.count; ++p) {
    const In* cells[4];
    T weights[4];
    for (int64_t i = 0; i < 4; ++i) {
      cells[i] = map + tile.cell[i][p] * channels;
      weights[i] = tile.weight[i][p];
    }
    for (int64_t k = 0; k < lanes; ++k) {
      T sum = weights[0] * T(cells[0][k]);
      for (int64_t i = 1; i < 4; ++i) sum += weights[i] * T(cells[i][k]);
      samples[p][k] = In(sum);
    }
    if (!tile.near[p]) std::fill_n(samples[p], lanes, In(T(0)));
  }
  for (int64_t k = 0; k < lanes; ++k)
    for (int64_t p = 0; p < tile.count; ++p) out[k * points + p] = samples[p][k];
}

template <int64_t Count, class In, class T>
SEGDET_INLINE void scatter_lanes(const In* grad, int64_t channels, const Tile<T>& tile,
                                 int64_t points, T* map, int64_t count) {
  const int64_t lanes = Count > 0 ? Count : count;
  T shares[kTile][kRow<T>];
  for (int64_t k = 0; k < lanes; ++k)
    for (int64_t p = 0; p < tile.count; ++p) shares[p][k] = T(grad[k * points + p]);
  for (int64_t p = 0; p < tile.count; ++p) {
    if (!tile.near[p]) continue;
    for (int64_t i = 0; i < 4; ++i) {
      T* cell = map + tile.cell[i][p] * channels;
      const T weight = tile.weight[i][p];
      for (int64_t k = 0; k < lanes; ++k) cell[k] += weight * shares[p][k];
    }
  }
}

// Gradient of the coordinates of a tile: what the four cells' weights change by, times the samples'
// gradients over all channels.
template <class In, class T>
SEGDET_INLINE void slope_tile(const In* grad, FeatureMap<const In> map, const T* points, int64_t t,
                              const Shape& in, T* out) {
  const int64_t first = t * kTile, count = std::min(kTile, in.points - first);
  for (int64_t p = 0; p < count; ++p) {
    const T* point = points + 2 * (first + p);
    T by_x = 0, by_y = 0;
    Pair<T> y{}, x{};
    if (pair_at(point[0], in.width, in.align_corners, x) &&
        pair_at(point[1], in.height, in.align_corners, y)) {
      for (int64_t i = 0; i < 4; ++i) {
        const In* cell = map.data + map.offset(0, 0, y.cell[i / 2], x.cell[i % 2]);
        T sum = 0;
        for (int64_t c = 0; c < in.channels; ++c)
          sum += T(grad[c * in.points + first + p]) * T(cell[c * map.channel]);
        by_x += y.weight[i / 2] * x.slope[i % 2] * sum;
        by_y += y.slope[i / 2] * x.weight[i % 2] * sum;
      }
    }
    out[2 * (first + p)] = by_x * cells_per_unit<T>(in.width, in.align_corners);
    out[2 * (first + p) + 1] = by_y * cells_per_unit<T>(in.height, in.align_corners);
  }
}

// target_clones needs plain functions, hence one per type.
#define SEGDET_POINT_KERNELS(In, T)                                                               \
  SEGDET_SIMD void gather(const In* plane, const Tile<T>& tile, In* out) {                        \
    gather_plane(plane, tile, out);                                                               \
  }                                                                                               \
  SEGDET_SIMD void scatter(const In* grad, const Tile<T>& tile, T* plane) {                       \
    scatter_plane(grad, tile, plane);                                                             \
  }                                                                                               \
  SEGDET_SIMD void gather(const In* map, int64_t channels, const Tile<T>& tile, int64_t points,   \
                          In* out, int64_t count) {                                               \
    if (count == kLanes) return gather_lanes<kLanes>(map, channels, tile, points, out, count);    \
    gather_lanes<0>(map, channels, tile, points, out, count);                                     \
  }                                                                                               \
  SEGDET_SIMD void scatter(const In* grad, int64_t channels, const Tile<T>& tile, int64_t points, \
                           T* map, int64_t count) {                                               \
    if (count == kLanes) return scatter_lanes<kLanes>(grad, channels, tile, points, map, count);  \
    scatter_lanes<0>(grad, channels, tile, points, map, count);                                   \
  }                                                                                               \
  SEGDET_SIMD void slope(const In* grad, FeatureMap<const In> map, const T* points, int64_t t,    \
                         const Shape& in, T* out) {                                               \
    slope_tile(grad, map, points, t, in, out);                                                    \
  }
SEGDET_POINT_KERNELS(float, float)
SEGDET_POINT_KERNELS(double, double)
SEGDET_POINT_KERNELS(Half, float)
SEGDET_POINT_KERNELS(BFloat16, float)
#undef SEGDET_POINT_KERNELS

// Calls visit(image, first channel, number of channels) for blocks of channels of all images, each
// in one thread.
template <class Visit>
void for_each_block(const Shape& in, int64_t size, const Visit& visit) {
  const int64_t blocks = (in.channels + size - 1) / size;
  torch::stable::parallel_for(0, in.batch * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t c = i % blocks * size;
      visit(i / blocks, c, std::min(size, in.channels - c));
    }
  });
}

// input (N, C, H, W) dense in either order, points (N, P, 2), out (N, C, P).
template <class In, class T>
void forward(const Tensor& input, const Tensor& points, const Shape& in, Tensor& out) {
  const In* maps = static_cast<const In*>(input.const_data_ptr());
  const T* point = points.const_data_ptr<T>();
  In* samples = static_cast<In*>(out.mutable_data_ptr());
  if (has_channels_last(input)) {
    torch::stable::parallel_for(0, in.batch * in.tiles(), 1, [&](int64_t begin, int64_t end) {
      Tile<T> tile;
      for (int64_t i = begin; i < end; ++i) {
        const int64_t n = i / in.tiles(), t = i % in.tiles();
        fill_tile(point + n * in.points * 2, t, in, tile);
        for (int64_t c = 0; c < in.channels; c += kLanes)
          gather(maps + n * in.cells() * in.channels + c, in.channels, tile, in.points,
                 samples + (n * in.channels + c) * in.points + t * kTile,
                 std::min(kLanes, in.channels - c));
      }
    });
    return;
  }
  const std::vector<Tile<T>> tiles = make_tiles(point, in);
  for_each_block(in, kPlanes, [&](int64_t n, int64_t first, int64_t count) {
    for (int64_t t = 0; t < in.tiles(); ++t)
      for (int64_t c = n * in.channels + first; c < n * in.channels + first + count; ++c)
        gather(maps + c * in.cells(), tiles[n * in.tiles() + t],
               samples + c * in.points + t * kTile);
  });
}

// grad (N, C, P), points (N, P, 2), out (N, C, H, W) dense in either order, of type T, all zeros.
template <class In, class T>
void backward(const Tensor& grad, const Tensor& points, const Shape& in, Tensor& out) {
  const In* samples = static_cast<const In*>(grad.const_data_ptr());
  const bool channels_last = has_channels_last(out);
  T* maps = out.mutable_data_ptr<T>();
  const std::vector<Tile<T>> tiles = make_tiles(points.const_data_ptr<T>(), in);
  for_each_block(in, channels_last ? kLanes : kPlanes,
                 [&](int64_t n, int64_t first, int64_t count) {
                   for (int64_t t = 0; t < in.tiles(); ++t) {
                     const Tile<T>& tile = tiles[n * in.tiles() + t];
                     const int64_t plane = n * in.channels + first;
                     const In* source = samples + plane * in.points + t * kTile;
                     if (channels_last)
                       scatter(source, in.channels, tile, in.points,
                               maps + n * in.cells() * in.channels + first, count);
                     else
                       for (int64_t k = 0; k < count; ++k)
                         scatter(source + k * in.points, tile, maps + (plane + k) * in.cells());
                   }
                 });
}

// grad (N, C, P), input (N, C, H, W) in any layout, points and out (N, P, 2).
template <class In, class T>
void coords_backward(const Tensor& grad, const Tensor& input, const Tensor& points, const Shape& in,
                     Tensor& out) {
  const In* samples = static_cast<const In*>(grad.const_data_ptr());
  const FeatureMap<const In> maps = read_map<In>(input);
  const T* point = points.const_data_ptr<T>();
  T* result = out.mutable_data_ptr<T>();
  torch::stable::parallel_for(0, in.batch * in.tiles(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / in.tiles(), first = n * in.points * 2;
      FeatureMap<const In> map = maps;
      map.data += n * maps.image;
      slope(samples + n * in.channels * in.points, map, point + first, i % in.tiles(), in,
            result + first);
    }
  });
}

// A tile's cells are numbers of 32 bits, half the memory to read for every channel.
void check_plane(int64_t height, int64_t width, const char* op) {
  SEGDET_CHECK(height <= std::numeric_limits<int32_t>::max() / width, "segdet::", op,
               ": input must have fewer than 2^31 cells on the CPU, is ", height, " x ", width);
}

}  // namespace

// input (N, C, H, W), point_coords (N, P, 2) in [0, 1] -> (N, C, P).
Tensor point_sample_cpu(const Tensor& input, const Tensor& point_coords, bool align_corners) {
  check_forward(input, point_coords);
  check_plane(input.size(2), input.size(3), "point_sample");
  const Tensor maps = has_channels_last(input)
                          ? torch::stable::contiguous(input, MemoryFormat::ChannelsLast)
                          : torch::stable::contiguous(input);
  const Tensor points = as_contiguous(point_coords, compute_type(input.scalar_type()));
  const Shape in{maps.size(0), maps.size(1),   maps.size(2),
                 maps.size(3), points.size(1), align_corners};
  Tensor out = torch::stable::new_empty(maps, {in.batch, in.channels, in.points});
  if (out.numel() == 0) return out;
  prefer_huge_pages(out);
  switch (input.scalar_type()) {
    case ScalarType::Double:
      forward<double, double>(maps, points, in, out);
      break;
    case ScalarType::Half:
      forward<Half, float>(maps, points, in, out);
      break;
    case ScalarType::BFloat16:
      forward<BFloat16, float>(maps, points, in, out);
      break;
    default:
      forward<float, float>(maps, points, in, out);
  }
  return out;
}

// grad (N, C, P) of the samples -> gradient (N, C, height, width) of the map.
Tensor point_sample_backward_cpu(const Tensor& grad, const Tensor& point_coords, int64_t height,
                                 int64_t width, bool align_corners, bool channels_last,
                                 bool /*deterministic*/) {
  check_backward(grad, point_coords, height, width);
  check_plane(height, width, "point_sample_backward");
  const ScalarType type = compute_type(grad.scalar_type());
  const Tensor samples = torch::stable::contiguous(grad);
  const Tensor points = as_contiguous(point_coords, type);
  const Shape in{grad.size(0), grad.size(1), height, width, grad.size(2), align_corners};
  Tensor out = empty_map(grad, {in.batch, in.channels, height, width}, type, channels_last);
  prefer_huge_pages(out);
  torch::stable::zero_(out);
  if (samples.numel() > 0) {
    switch (grad.scalar_type()) {
      case ScalarType::Double:
        backward<double, double>(samples, points, in, out);
        break;
      case ScalarType::Half:
        backward<Half, float>(samples, points, in, out);
        break;
      case ScalarType::BFloat16:
        backward<BFloat16, float>(samples, points, in, out);
        break;
      default:
        backward<float, float>(samples, points, in, out);
    }
  }
  return type == grad.scalar_type() ? out : torch::stable::to(out, grad.scalar_type());
}

// grad (N, C, P) of the samples of input (N, C, H, W) -> gradient of point_coords (N, P, 2).
Tensor point_sample_coords_backward_cpu(const Tensor& grad, const Tensor& input,
                                        const Tensor& point_coords, bool align_corners) {
  check_coords_backward(grad, input, point_coords);
  const ScalarType type = compute_type(input.scalar_type());
  const Tensor samples = torch::stable::contiguous(grad);
  const Tensor points = as_contiguous(point_coords, type);
  const Shape in{input.size(0), input.size(1),  input.size(2),
                 input.size(3), points.size(1), align_corners};
  Tensor out = torch::stable::new_empty(points, {in.batch, in.points, 2});
  switch (input.scalar_type()) {
    case ScalarType::Double:
      coords_backward<double, double>(samples, input, points, in, out);
      break;
    case ScalarType::Half:
      coords_backward<Half, float>(samples, input, points, in, out);
      break;
    case ScalarType::BFloat16:
      coords_backward<BFloat16, float>(samples, input, points, in, out);
      break;
    default:
      coords_backward<float, float>(samples, input, points, in, out);
  }
  return type == point_coords.scalar_type() ? out
                                            : torch::stable::to(out, point_coords.scalar_type());
}

}  // namespace segdet::point_sample

STABLE_TORCH_LIBRARY_FRAGMENT(segdet, m) {
  m.def("point_sample(Tensor input, Tensor point_coords, bool align_corners) -> Tensor");
  m.def(
      "point_sample_backward(Tensor grad, Tensor point_coords, SymInt height, SymInt width, bool "
      "align_corners, bool channels_last, bool deterministic) -> Tensor");
  m.def(
      "point_sample_coords_backward(Tensor grad, Tensor input, Tensor point_coords, bool "
      "align_corners) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(segdet, CPU, m) {
  m.impl("point_sample", TORCH_BOX(&segdet::point_sample::point_sample_cpu));
  m.impl("point_sample_backward", TORCH_BOX(&segdet::point_sample::point_sample_backward_cpu));
  m.impl("point_sample_coords_backward",
         TORCH_BOX(&segdet::point_sample::point_sample_coords_backward_cpu));
}
