// Deformable convolution on the CPU.
//
// For a tile of positions and one tap, the samples of up to 256 channels make a block that fits the
// cache; a matrix product adds it, times the weights of that tap, to the tile's sums. So the matrix
// of all samples, taps times as large as the input, never exists.
#include "tiles.h"

namespace segdet::deform_conv {
namespace {

// Where one image's result goes: element (position, output) is at
// out[position * position_stride + output * output_stride].
template <class T>
struct Target {
  T* out;
  int64_t position_stride, output_stride;
};

// What a thread works with.
template <class T>
struct Scratch {
  std::vector<Sample<T>> samples;  // (offset group, tap, kTile)
  std::vector<T> columns;          // one block of kTile rows
  std::vector<T> sums;             // a block of kTile rows for every kBlock outputs of a group

  explicit Scratch(const Shape& shape)
      : samples(shape.offset_groups * shape.taps() * kTile),
        columns(kTile * kStride),
        sums(round_up(shape.group_outputs(), kBlock) / kBlock * kTile * kStride) {}
};

template <class T>
void start_with_bias(const Shape& shape, const T* bias, int64_t group, std::vector<T>& sums) {
  const int64_t outputs = shape.group_outputs();
  for (int64_t o = 0; o < outputs; o += kBlock) {
    T* row = sums.data() + o / kBlock * kTile * kStride;
    for (int64_t p = 0; p < kTile; ++p, row += kStride)
      for (int64_t i = o; i < std::min(o + kBlock, outputs); ++i)
        row[i - o] = bias == nullptr ? T(0) : bias[group * outputs + i];
  }
}

template <class T>
void store(const Shape& shape, const std::vector<T>& sums, int64_t group, const Tile& tile,
           const Target<T>& target) {
  const int64_t outputs = shape.group_outputs();
  T* out =
      target.out + tile.begin * target.position_stride + group * outputs * target.output_stride;
  const auto sum = [&](int64_t p, int64_t o) {
    return sums[(o / kBlock * kTile + p) * kStride + o % kBlock];
  };
  if (target.output_stride == 1) {
    for (int64_t p = 0; p < tile.count; ++p)
      for (int64_t o = 0; o < outputs; ++o) out[p * target.position_stride + o] = sum(p, o);
  } else {
    for (int64_t o = 0; o < outputs; ++o)
      for (int64_t p = 0; p < tile.count; ++p) out[p + o * target.output_stride] = sum(p, o);
  }
}

// The outputs of one group of channels at the positions of a tile.
template <class T>
void forward_group(const Shape& shape, const Arrays<T>& in, const PackedWeight<T>& weight,
                   const std::vector<Block>& blocks, const Run& group, const Tile& tile,
                   Scratch<T>& scratch) {
  const int64_t rows = round_up(tile.count, kTileRows), outputs = shape.group_outputs();
  const T* cells = in.input + tile.image * shape.cells() * shape.channels;
  for (int64_t tap = 0; tap < shape.taps(); ++tap) {
    for (int64_t b = group.begin; b < group.end; ++b) {
      const Block& block = blocks[b];
      const Sample<T>* samples =
          scratch.samples.data() + (block.offset_group * shape.taps() + tap) * kTile;
      sample_columns(shape, samples, tile.count, cells + block.begin, block.size,
                     scratch.columns.data());
      for (int64_t o = 0; o < outputs; o += kBlock)
        multiply(rows, block.size, round_up(std::min(kBlock, outputs - o), kPanel<T>),
                 scratch.columns.data(), weight.at(tap, b, o),
                 scratch.sums.data() + o / kBlock * kTile * kStride);
    }
  }
}

template <class T>
void forward(const Shape& shape, const Arrays<T>& in, const T* bias, bool to_channels_last,
             T* out) {
  const std::vector<Block> blocks = channel_blocks(shape, kBlock);
  const std::vector<Run> groups = runs_of(blocks, [](const Block& block) { return block.group; });
  const PackedWeight<T> weight(shape, in.weight, blocks, /*transposed=*/false);
  const int64_t positions = shape.positions();
  torch::stable::parallel_for(0, shape.batch * tiles_of(shape), 1, [&](int64_t begin, int64_t end) {
    Scratch<T> scratch(shape);
    for (int64_t t = begin; t < end; ++t) {
      const Tile tile = tile_at(shape, t);
      for (int64_t i = 0; i < shape.offset_groups * shape.taps(); ++i)
        in.samples(shape, tile, i / shape.taps(), i % shape.taps(),
                   scratch.samples.data() + i * kTile);
      T* image = out + tile.image * positions * shape.outputs;
      const Target<T> target =
          to_channels_last ? Target<T>{image, shape.outputs, 1} : Target<T>{image, 1, positions};
      for (int64_t g = 0; g < shape.groups; ++g) {
        start_with_bias(shape, bias, g, scratch.sums);
        forward_group(shape, in, weight, blocks, groups[g], tile, scratch);
        store(shape, scratch.sums, g, tile, target);
      }
    }
  });
}

template <class T>
Tensor run_forward(const Shape& shape, const Tensor& input, const Tensor& offset,
                   const std::optional<Tensor>& mask, const Tensor& weight,
                   const std::optional<Tensor>& bias) {
  const Arguments<T> in(input, offset, mask, weight);
  std::optional<Tensor> biases;
  if (bias) biases = as_contiguous(*bias, kType<T>);
  const bool to_channels_last = has_channels_last(input);
  const int64_t b = shape.batch, o = shape.outputs, h = shape.y.out, w = shape.x.out;
  Tensor out = to_channels_last ? torch::stable::new_empty(in.input, {b, h, w, o})
                                : torch::stable::new_empty(in.input, {b, o, h, w});
  forward(shape, Arrays<T>(in), data_or_null<T>(biases), to_channels_last,
          out.mutable_data_ptr<T>());
  out = as_contiguous(out, input.scalar_type());
  return to_channels_last ? channels_first(out) : out;
}

}  // namespace

// input (B, C, H, W), offset (B, 2 D taps, OH, OW), weight (O, C / groups, h, w), bias (O,), mask
// (B, D taps, OH, OW) -> (B, O, OH, OW).
Tensor deform_conv2d_cpu(const Tensor& input, const Tensor& offset,
                         const std::optional<Tensor>& mask, const Tensor& weight,
                         const std::optional<Tensor>& bias, std::vector<int64_t> stride,
                         std::vector<int64_t> padding, std::vector<int64_t> dilation) {
  const Shape shape = make_shape(input, offset, mask, weight, stride, padding, dilation);
  check_bias(input, bias, shape);
  return compute_type(input.scalar_type()) == ScalarType::Double
             ? run_forward<double>(shape, input, offset, mask, weight, bias)
             : run_forward<float>(shape, input, offset, mask, weight, bias);
}

}  // namespace segdet::deform_conv

STABLE_TORCH_LIBRARY_FRAGMENT(segdet, m) {
  m.def(
      "deform_conv2d(Tensor input, Tensor offset, Tensor? mask, Tensor weight, Tensor? bias, "
      "SymInt[] stride, SymInt[] padding, SymInt[] dilation) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(segdet, CPU, m) {
  m.impl("deform_conv2d", TORCH_BOX(&segdet::deform_conv::deform_conv2d_cpu));
}
