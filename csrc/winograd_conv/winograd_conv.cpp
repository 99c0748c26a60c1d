// 3x3 convolution by Winograd's minimal filtering F(2x2, 3x3) (Lavin and Gray 2015,
// arXiv:1509.09308) on the CPU, for inference: 16 products for 2x2 outputs, where the sum over
// the taps has 36.
//
// A "tile" is 2x2 outputs and the 4x4 cells that they look at. Tiles are worked on kTiles at a
// time: their cells are transformed into 16 matrices (tiles, channels), which stay in the cache,
// each is multiplied by its matrix of weights (channels, outputs), and the products are transformed
// back: section 4.1 of the paper. A sum has a ninth of the terms that the sum over taps and
// channels has, which makes it more exact than that, in spite of the transforms.
#include <algorithm>
#include <vector>

#include "../feature_map.h"
#include "../gemm.h"
#include "../huge_pages.h"
#include "../simd.h"

namespace segdet::winograd_conv {
namespace {

constexpr int64_t kPlaces = 16;  // of a tile
constexpr int64_t kTiles = 2 * kTileRows;
constexpr int64_t kMatrix = kTiles * kStride;  // of a block of channels, in elements

typedef float Vector __attribute__((vector_size(64), aligned(4), may_alias));
constexpr int64_t kLanes = sizeof(Vector) / sizeof(float);

struct Shape {
  int64_t batch, channels, outputs, height, width;

  int64_t tiles_high() const { return (height + 1) / 2; }
  int64_t tiles_wide() const { return (width + 1) / 2; }
  int64_t tiles() const { return batch * tiles_high() * tiles_wide(); }
  int64_t channel_blocks() const { return (channels + kBlock - 1) / kBlock; }
  int64_t output_blocks() const { return (outputs + kBlock - 1) / kBlock; }
};

// The upper left output of a tile.
struct Tile {
  int64_t image, y, x;
};

SEGDET_INLINE Tile tile_at(const Shape& shape, int64_t index) {
  const int64_t row = index / shape.tiles_wide();
  return {row / shape.tiles_high(), row % shape.tiles_high() * 2, index % shape.tiles_wide() * 2};
}

// B^T d B of 4x4 cells, row by row.
SEGDET_INLINE void to_places(const Vector* d, Vector* out) {
  Vector t[16];
  for (int i = 0; i < 4; ++i) {
    t[i] = d[i] - d[8 + i];
    t[4 + i] = d[4 + i] + d[8 + i];
    t[8 + i] = d[8 + i] - d[4 + i];
    t[12 + i] = d[4 + i] - d[12 + i];
  }
  for (int i = 0; i < 16; i += 4) {
    out[i] = t[i] - t[i + 2];
    out[i + 1] = t[i + 1] + t[i + 2];
    out[i + 2] = t[i + 2] - t[i + 1];
    out[i + 3] = t[i + 1] - t[i + 3];
  }
}

// A^T m A: 2x2 outputs of 4x4 products, row by row.
SEGDET_INLINE void from_places(const Vector* m, Vector* out) {
  Vector t[8];
  for (int i = 0; i < 4; ++i) {
    t[i] = m[i] + m[4 + i] + m[8 + i];
    t[4 + i] = m[4 + i] - m[8 + i] - m[12 + i];
  }
  for (int i = 0; i < 2; ++i) {
    out[2 * i] = t[4 * i] + t[4 * i + 1] + t[4 * i + 2];
    out[2 * i + 1] = t[4 * i + 1] - t[4 * i + 2] - t[4 * i + 3];
  }
}

// places: per place and kBlock channels a block (kTiles, channels), as gemm.h says.
SEGDET_SIMD void read_tiles(const Shape& shape, const FeatureMap<const float>& map, int64_t first,
                            int64_t count, float* places) {
  static const float zeros[kBlock] = {};
  const int64_t place_size = shape.channel_blocks() * kMatrix;
  for (int64_t i = 0; i < count; ++i) {
    const Tile tile = tile_at(shape, first + i);
    const float* cells[kPlaces];
    for (int64_t p = 0; p < kPlaces; ++p) {
      const int64_t y = tile.y + p / 4 - 1, x = tile.x + p % 4 - 1;
      const bool inside = y >= 0 && y < shape.height && x >= 0 && x < shape.width;
      cells[p] = inside ? &map.at(tile.image, 0, y, x) : nullptr;
    }
    for (int64_t c = 0; c < shape.channels; c += kLanes) {
      Vector d[16], v[16];
#pragma GCC unroll 16
      for (int p = 0; p < kPlaces; ++p)
        d[p] = *reinterpret_cast<const Vector*>(cells[p] ? cells[p] + c : zeros);
      to_places(d, v);
      float* out = places + c / kBlock * kMatrix + i * kStride + c % kBlock;
#pragma GCC unroll 16
      for (int p = 0; p < kPlaces; ++p) *reinterpret_cast<Vector*>(out + p * place_size) = v[p];
    }
  }
}

// products: likewise, of outputs.
SEGDET_SIMD void write_tiles(const Shape& shape, const float* products, const float* bias,
                             bool relu, int64_t first, int64_t count,
                             const FeatureMap<float>& map) {
  const int64_t place_size = shape.output_blocks() * kMatrix;
  for (int64_t i = 0; i < count; ++i) {
    const Tile tile = tile_at(shape, first + i);
    const bool has_right = tile.x + 1 < shape.width, has_below = tile.y + 1 < shape.height;
    float* cell = &map.at(tile.image, 0, tile.y, tile.x);
    for (int64_t o = 0; o < shape.outputs; o += kLanes) {
      Vector m[16], y[4];
      const float* in = products + o / kBlock * kMatrix + i * kStride + o % kBlock;
#pragma GCC unroll 16
      for (int p = 0; p < kPlaces; ++p)
        m[p] = *reinterpret_cast<const Vector*>(in + p * place_size);
      from_places(m, y);
      const Vector b = *reinterpret_cast<const Vector*>(bias + o);
      for (int p = 0; p < 4; ++p) {
        y[p] += b;
        if (relu) y[p] = y[p] < 0 ? Vector{} : y[p];  // NaN stays
      }
      *reinterpret_cast<Vector*>(cell + o) = y[0];
      if (has_right) *reinterpret_cast<Vector*>(cell + map.column + o) = y[1];
      if (has_below) *reinterpret_cast<Vector*>(cell + map.row + o) = y[2];
      if (has_right && has_below)
        *reinterpret_cast<Vector*>(cell + map.row + map.column + o) = y[3];
    }
  }
}

// Per place, products (kTiles, outputs) = places (kTiles, channels) weight (channels, outputs).
void multiply_places(const Shape& shape, int64_t count, const float* places, const float* weight,
                     float* products) {
  const int64_t rows = round_up(count, kTileRows);
  const int64_t columns = round_up(shape.outputs, kPanel<float>);
  for (int64_t p = 0; p < kPlaces; ++p) {
    const float* w = weight + p * shape.channels * columns;
    for (int64_t o = 0; o < shape.outputs; o += kBlock) {
      const int64_t wide = round_up(std::min(kBlock, shape.outputs - o), kPanel<float>);
      float* c = products + (p * shape.output_blocks() + o / kBlock) * kMatrix;
      std::fill(c, c + rows * kStride, 0.0f);
      for (int64_t k = 0; k < shape.channels; k += kBlock) {
        const int64_t depth = std::min(kBlock, shape.channels - k);
        multiply(rows, depth, wide, places + (p * shape.channel_blocks() + k / kBlock) * kMatrix, w,
                 c);
        w += depth * wide;
      }
    }
  }
}

void check(const Tensor& input, const Tensor& weight, const Tensor& bias) {
  for (const auto& [tensor, name] :
       {std::pair{&input, "input"}, std::pair{&weight, "weight"}, std::pair{&bias, "bias"}})
    SEGDET_CHECK(tensor->scalar_type() == ScalarType::Float, "segdet::winograd_conv: ", name,
                 " must be float32, is ", torch::headeronly::toString(tensor->scalar_type()));
  SEGDET_CHECK(input.dim() == 4, "segdet::winograd_conv: input must be (B, C, H, W), has ",
               input.dim(), " dimensions");
  SEGDET_CHECK(bias.dim() == 1, "segdet::winograd_conv: bias must be (O,), has ", bias.dim(),
               " dimensions");
  const int64_t channels = input.size(1), outputs = bias.size(0);
  SEGDET_CHECK(channels > 0 && channels % kLanes == 0 && outputs > 0 && outputs % kLanes == 0,
               "segdet::winograd_conv: channels must be multiples of ", kLanes, ", are ", channels,
               " and ", outputs);
  const int64_t packed = channels * round_up(outputs, kPanel<float>);
  SEGDET_CHECK(weight.dim() == 2 && weight.size(0) == kPlaces && weight.size(1) == packed,
               "segdet::winograd_conv: weight must be (", kPlaces, ", ", packed, ") for ", channels,
               " channels and ", outputs, " outputs, has ", weight.numel(), " elements");
}

}  // namespace

// input (B, C, H, W), weight as segdet.ops.winograd_weight packs it, bias (O,) -> (B, O, H, W)
// channels-last.
Tensor winograd_conv_cpu(const Tensor& input, const Tensor& weight, const Tensor& bias, bool relu) {
  using torch::headeronly::MemoryFormat;
  check(input, weight, bias);
  const Shape shape{input.size(0), input.size(1), bias.size(0), input.size(2), input.size(3)};
  const Tensor cells = torch::stable::contiguous(input, MemoryFormat::ChannelsLast);
  const Tensor packed = torch::stable::contiguous(weight), biases = torch::stable::contiguous(bias);
  Tensor out = torch::stable::empty({shape.batch, shape.outputs, shape.height, shape.width},
                                    ScalarType::Float, std::nullopt, input.device(), std::nullopt,
                                    MemoryFormat::ChannelsLast);
  prefer_huge_pages(out);
  const FeatureMap<const float> from = read_map<float>(cells);
  const FeatureMap<float> to = write_map<float>(out);
  const float *w = packed.const_data_ptr<float>(), *b = biases.const_data_ptr<float>();
  const int64_t parts = (shape.tiles() + kTiles - 1) / kTiles;
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> places(kPlaces * shape.channel_blocks() * kMatrix);
    std::vector<float> products(kPlaces * shape.output_blocks() * kMatrix);
    for (int64_t part = begin; part < end; ++part) {
      const int64_t first = part * kTiles, count = std::min(kTiles, shape.tiles() - first);
      read_tiles(shape, from, first, count, places.data());
      multiply_places(shape, count, places.data(), w, products.data());
      write_tiles(shape, products.data(), b, relu, first, count, to);
    }
  });
  return out;
}

}  // namespace segdet::winograd_conv

STABLE_TORCH_LIBRARY_FRAGMENT(segdet, m) {
  m.def("winograd_conv(Tensor input, Tensor weight, Tensor bias, bool relu) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(segdet, CPU, m) {
  m.impl("winograd_conv", TORCH_BOX(&segdet::winograd_conv::winograd_conv_cpu));
}
