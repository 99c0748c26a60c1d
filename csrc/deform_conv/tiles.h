// What both directions of deformable convolution share on the CPU: maps with the channels beside
// each other, worked on in tiles of positions and blocks of channels that fit the cache.
#pragma once

#include <algorithm>
#include <vector>

#include "../gemm.h"
#include "deform_conv.h"

namespace segdet::deform_conv {

constexpr int64_t kTile = 96;  // positions; a multiple of kTileRows
static_assert(kTile % kTileRows == 0);

// Channels [begin, begin + size) that share their group and offset group.
struct Block {
  int64_t begin, size, group, offset_group;
};

// All channels in blocks of at most `limit`.
inline std::vector<Block> channel_blocks(const Shape& shape, int64_t limit) {
  const int64_t in_group = shape.group_channels(), in_offset_group = shape.offset_channels();
  std::vector<Block> blocks;
  for (int64_t begin = 0; begin < shape.channels; begin += blocks.back().size) {
    const int64_t group = begin / in_group, offset_group = begin / in_offset_group;
    const int64_t end =
        std::min({(group + 1) * in_group, (offset_group + 1) * in_offset_group, begin + limit});
    blocks.push_back({begin, end - begin, group, offset_group});
  }
  return blocks;
}

// Blocks [begin, end) of a list, which belong together.
struct Run {
  int64_t begin, end;
};

// Neighbours of the same key.
template <class Key>
std::vector<Run> runs_of(const std::vector<Block>& blocks, const Key& key) {
  std::vector<Run> runs;
  for (int64_t i = 0; i < int64_t(blocks.size()); ++i) {
    if (i == 0 || key(blocks[i]) != key(blocks[i - 1])) runs.push_back({i, i});
    runs.back().end = i + 1;
  }
  return runs;
}

// The weights as `multiply` reads them: a packed matrix for each tap, block of channels and block
// of kBlock outputs of the group. Forward its rows are channels and its columns outputs, backward
// it is the transpose.
template <class T>
class PackedWeight {
 public:
  PackedWeight(const Shape& shape, const T* weight, const std::vector<Block>& blocks,
               bool transposed)
      : shape_(shape), blocks_(int64_t(blocks.size())) {
    int64_t size = 0;
    for (int64_t tap = 0; tap < shape.taps(); ++tap)
      for (const Block& block : blocks)
        for (int64_t o = 0; o < shape.group_outputs(); o += kBlock) {
          const int64_t outputs = outputs_at(o);
          begin_.push_back(size);
          size += transposed ? outputs * round_up(block.size, kPanel<T>)
                             : block.size * round_up(outputs, kPanel<T>);
        }
    panels_.resize(size);
    torch::stable::parallel_for(0, shape.taps() * blocks_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        pack(weight, i / blocks_, blocks[i % blocks_], i % blocks_, transposed);
    });
  }

  // block: its index; output: the first of the block of outputs, counted in the group.
  const T* at(int64_t tap, int64_t block, int64_t output) const {
    return panels_.data() + begin_[index(tap, block, output)];
  }

 private:
  int64_t index(int64_t tap, int64_t block, int64_t output) const {
    const int64_t output_blocks = (shape_.group_outputs() + kBlock - 1) / kBlock;
    return (tap * blocks_ + block) * output_blocks + output / kBlock;
  }

  int64_t outputs_at(int64_t output) const {
    return std::min(kBlock, shape_.group_outputs() - output);
  }

  void pack(const T* weight, int64_t tap, const Block& block, int64_t i, bool transposed) {
    const int64_t in_group = shape_.group_channels(), taps = shape_.taps();
    for (int64_t first = 0; first < shape_.group_outputs(); first += kBlock) {
      T* packed = panels_.data() + begin_[index(tap, i, first)];
      const int64_t outputs = outputs_at(first), depth = transposed ? outputs : block.size;
      for (int64_t o = 0; o < outputs; ++o) {
        const int64_t output = block.group * shape_.group_outputs() + first + o;
        const T* from = weight + (output * in_group + block.begin % in_group) * taps + tap;
        for (int64_t c = 0; c < block.size; ++c) {
          const int64_t row = transposed ? o : c, column = transposed ? c : o;
          packed[(column / kPanel<T> * depth + row) * kPanel<T> + column % kPanel<T>] =
              from[c * taps];
        }
      }
    }
  }

  Shape shape_;
  int64_t blocks_;
  std::vector<int64_t> begin_;  // of each packed matrix in panels_
  std::vector<T> panels_;
};

// Positions of one image.
struct Tile {
  int64_t image, begin, count;
};

inline int64_t tiles_of(const Shape& shape) { return (shape.positions() + kTile - 1) / kTile; }

// index: counts the tiles of the first image, then those of the second, ...
inline Tile tile_at(const Shape& shape, int64_t index) {
  const int64_t tiles = tiles_of(shape), begin = index % tiles * kTile;
  return {index / tiles, begin, std::min(kTile, shape.positions() - begin)};
}

template <class T>
constexpr ScalarType kType = sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float;

// from (batch, rows, columns) -> to (batch, columns, rows).
#define SEGDET_TRANSPOSE(T)                                                                       \
  SEGDET_SIMD inline void transpose_rows(const T* from, int64_t begin, int64_t end, int64_t rows, \
                                         int64_t columns, T* to) {                                \
    for (int64_t first = 0; first < columns; first += 16)                                         \
      for (int64_t c = first; c < std::min(first + 16, columns); ++c)                             \
        for (int64_t r = begin; r < end; ++r) to[c * rows + r] = from[r * columns + c];           \
  }
SEGDET_TRANSPOSE(float)
SEGDET_TRANSPOSE(double)
#undef SEGDET_TRANSPOSE

template <class T>
void transpose(const T* from, int64_t batch, int64_t rows, int64_t columns, T* to) {
  constexpr int64_t kStrip = 16;
  const int64_t strips = (rows + kStrip - 1) / kStrip, size = rows * columns;
  torch::stable::parallel_for(0, batch * strips, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i % strips * kStrip, base = i / strips * size;
      transpose_rows(from + base, row, std::min(row + kStrip, rows), rows, columns, to + base);
    }
  });
}

// maps (B, C, H, W) of any type and strides -> contiguous (B, H, W, C).
template <class T>
Tensor as_rows(const Tensor& maps) {
  const Tensor view = channels_last(maps);
  if (view.is_contiguous() || has_channels_last(maps)) return as_contiguous(view, kType<T>);
  const Tensor planes = as_contiguous(maps, kType<T>);
  const int64_t batch = maps.size(0), channels = maps.size(1);
  const int64_t height = maps.size(2), width = maps.size(3);
  Tensor rows = torch::stable::new_empty(planes, {batch, height, width, channels});
  transpose(planes.const_data_ptr<T>(), batch, channels, height * width,
            rows.mutable_data_ptr<T>());
  return rows;
}

// rows (B, H, W, C) -> (B, C, H, W) in the type and memory format of `like`.
template <class T>
Tensor as_maps(const Tensor& rows, const Tensor& like) {
  const ScalarType type = like.scalar_type();
  if (has_channels_last(like)) return channels_first(as_contiguous(rows, type));
  const int64_t batch = rows.size(0), height = rows.size(1);
  const int64_t width = rows.size(2), channels = rows.size(3);
  Tensor maps = torch::stable::new_empty(rows, {batch, channels, height, width});
  transpose(rows.const_data_ptr<T>(), batch, height * width, channels, maps.mutable_data_ptr<T>());
  return as_contiguous(maps, type);
}

template <class T>
const T* data_or_null(const std::optional<Tensor>& tensor) {
  return tensor ? tensor->const_data_ptr<T>() : nullptr;
}

// The op's arguments in the type it computes in.
template <class T>
struct Arguments {
  Tensor input;                // (B, H, W, C)
  Tensor offset;               // (B, D, taps, 2, positions)
  std::optional<Tensor> mask;  // (B, D, taps, positions)
  Tensor weight;               // (O, C / groups, taps)

  Arguments(const Tensor& input, const Tensor& offset, const std::optional<Tensor>& mask,
            const Tensor& weight)
      : input(as_rows<T>(input)),
        offset(as_contiguous(offset, kType<T>)),
        mask(mask ? std::optional(as_contiguous(*mask, kType<T>)) : std::nullopt),
        weight(as_contiguous(weight, kType<T>)) {}
};

// The same as plain pointers, for loops.
template <class T>
struct Arrays {
  const T *input, *offset, *mask, *weight;  // mask: or null

  explicit Arrays(const Arguments<T>& in)
      : input(in.input.template const_data_ptr<T>()),
        offset(in.offset.template const_data_ptr<T>()),
        mask(data_or_null<T>(in.mask)),
        weight(in.weight.template const_data_ptr<T>()) {}

  // Where a tap samples at each position of a tile.
  void samples(const Shape& shape, const Tile& tile, int64_t offset_group, int64_t tap,
               Sample<T>* out) const {
    const int64_t plane =
        (tile.image * shape.offset_groups + offset_group) * shape.taps() * shape.positions();
    for (int64_t p = 0; p < tile.count; ++p)
      out[p] = sample_of(shape, offset + 2 * plane, mask == nullptr ? nullptr : mask + plane, tap,
                         tile.begin + p);
  }
};

// 64 bytes of channels, wherever they begin.
template <class T>
struct Lanes {
  static constexpr int64_t count = 64 / sizeof(T);
  typedef T Vector __attribute__((vector_size(64), aligned(alignof(T)), may_alias));
  static const Vector& at(const T* values) { return *reinterpret_cast<const Vector*>(values); }
  static Vector& at(T* values) { return *reinterpret_cast<Vector*>(values); }
};

// columns (count, size), a block: `size` channels of the samples. cells (H, W, C) begins at the
// first of these channels.
template <class T>
SEGDET_INLINE void sample_block(const Shape& shape, const Sample<T>* samples, int64_t count,
                                const T* cells, int64_t size, T* columns) {
  static const T zeros[kBlock] = {};
  for (int64_t p = 0; p < count; ++p) {
    const T* corner[4];
    T weight[4];
    for (int i = 0; i < 4; ++i) {
      const int64_t cell = samples[p].cell(i, shape.y.size, shape.x.size);
      corner[i] = cell < 0 ? zeros : cells + cell * shape.channels;
      weight[i] = samples[p].mask * samples[p].weight(i);
    }
    T* out = columns + p * kStride;
    int64_t c = 0;
    for (; c + Lanes<T>::count <= size; c += Lanes<T>::count)
      Lanes<T>::at(out + c) =
          weight[0] * Lanes<T>::at(corner[0] + c) + weight[1] * Lanes<T>::at(corner[1] + c) +
          weight[2] * Lanes<T>::at(corner[2] + c) + weight[3] * Lanes<T>::at(corner[3] + c);
    for (; c < size; ++c)
      out[c] = weight[0] * corner[0][c] + weight[1] * corner[1][c] + weight[2] * corner[2][c] +
               weight[3] * corner[3][c];
  }
}

#define SEGDET_SAMPLE_COLUMNS(T)                                                       \
  SEGDET_SIMD inline void sample_columns(const Shape& shape, const Sample<T>* samples, \
                                         int64_t count, const T* cells, int64_t size,  \
                                         T* columns) {                                 \
    sample_block(shape, samples, count, cells, size, columns);                         \
  }
SEGDET_SAMPLE_COLUMNS(float)
SEGDET_SAMPLE_COLUMNS(double)
#undef SEGDET_SAMPLE_COLUMNS

}  // namespace segdet::deform_conv
