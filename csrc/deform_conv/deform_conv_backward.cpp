// The gradients of deformable convolution on the CPU.
//
// Two passes, so that no two threads write to the same place and every sum has one order. The
// first is divided by image and channels: it takes the samples' gradients, grad times the
// transposed weights, and spreads them to the input's cells; the sums over channels that offset and
// mask need are added up afterwards. The second, for the weights, is divided by tap and channels:
// grad, transposed, times the samples.
#include "tiles.h"

namespace segdet::deform_conv {
namespace {

constexpr int64_t kNarrow = 64;  // channels of a block, so that there are blocks for all threads
constexpr int64_t kSumRows = round_up(kBlock, kTileRows);

template <class T>
struct Gradients {
  T* input;          // (B, H, W, C)
  T *offset, *mask;  // (parts, B, D, taps, 2, positions), (parts, B, D, taps, positions) or null
  T* weight;         // (O, C / groups, taps)
};

// Blocks of about kNarrow channels of an offset group are one part of its sums.
int64_t part_of(const Shape& shape, const Block& block) {
  return block.begin % shape.offset_channels() / kNarrow;
}

// grad (B, positions, O): one group's outputs at a tile, as a block of kTile rows for every kBlock.
template <class T>
void load_grad(const Shape& shape, const T* grad, int64_t group, const Tile& tile, T* blocks) {
  const int64_t outputs = shape.group_outputs();
  const T* from =
      grad + (tile.image * shape.positions() + tile.begin) * shape.outputs + group * outputs;
  for (int64_t o = 0; o < outputs; o += kBlock)
    for (int64_t p = 0; p < tile.count; ++p)
      std::copy_n(from + p * shape.outputs + o, std::min(kBlock, outputs - o),
                  blocks + (o / kBlock * kTile + p) * kStride);
}

// One sample and its gradient, for `size` channels: adds the gradient, by weight, to the cells'
// gradients, and gives its scalar products with the cells.
template <class T>
SEGDET_INLINE void spread_sample(const T* grad, const T* weight, const T* const* cell,
                                 T* const* grad_cell, int64_t size, T* products) {
  using L = Lanes<T>;
  typename L::Vector sum[4] = {};
  int64_t c = 0;
  for (; c + L::count <= size; c += L::count) {
    const typename L::Vector g = L::at(grad + c);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      sum[i] += g * L::at(cell[i] + c);
      L::at(grad_cell[i] + c) += weight[i] * g;
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    for (int64_t lane = 0; lane < L::count; ++lane) products[i] += sum[i][lane];
    for (int64_t k = c; k < size; ++k) {
      products[i] += grad[k] * cell[i][k];
      grad_cell[i][k] += weight[i] * grad[k];
    }
  }
}

// columns (count, size), a block: gradients of the samples. cells and grad_cells (H, W, C) begin at
// the first of these channels. products (count, 4) of the samples' gradients with each corner.
template <class T>
SEGDET_INLINE void spread_block(const Shape& shape, const Sample<T>* samples, int64_t count,
                                const T* columns, int64_t size, const T* cells, T* grad_cells,
                                T* products) {
  static const T zeros[kNarrow] = {};
  T nowhere[kNarrow] = {};  // takes what corners off the map would get
  for (int64_t p = 0; p < count; ++p) {
    const T* cell[4];
    T* grad_cell[4];
    T weight[4];
    for (int i = 0; i < 4; ++i) {
      const int64_t at = samples[p].cell(i, shape.y.size, shape.x.size);
      cell[i] = at < 0 ? zeros : cells + at * shape.channels;
      grad_cell[i] = at < 0 ? nowhere : grad_cells + at * shape.channels;
      weight[i] = samples[p].mask * samples[p].weight(i);
    }
    spread_sample(columns + p * kStride, weight, cell, grad_cell, size, products + 4 * p);
  }
}

#define SEGDET_SPREAD_COLUMNS(T)                                                                 \
  SEGDET_SIMD void spread_columns(const Shape& shape, const Sample<T>* samples, int64_t count,   \
                                  const T* columns, int64_t size, const T* cells, T* grad_cells, \
                                  T* products) {                                                 \
    spread_block(shape, samples, count, columns, size, cells, grad_cells, products);             \
  }
SEGDET_SPREAD_COLUMNS(float)
SEGDET_SPREAD_COLUMNS(double)
#undef SEGDET_SPREAD_COLUMNS

// What a thread of the first pass works with.
template <class T>
struct SpreadScratch {
  std::vector<Sample<T>> samples;  // (taps, kTile)
  std::vector<T> grads;            // of one group's outputs, as load_grad leaves them
  std::vector<T> columns;          // one block of kTile rows
  std::vector<T> products;         // (taps, kTile, 4)

  explicit SpreadScratch(const Shape& shape)
      : samples(shape.taps() * kTile),
        grads(round_up(shape.group_outputs(), kBlock) / kBlock * kTile * kStride),
        columns(kTile * kStride),
        products(shape.taps() * kTile * 4) {}
};

// One image, and a run of blocks that share their offset group.
struct SpreadTask {
  int64_t image, offset_group;
  int64_t part;  // counts the runs of the offset group
  Run run;
};

// The samples' gradients of a tile, spread to out.input and summed up in scratch.products.
template <class T>
void spread_tile(const Shape& shape, const Arrays<T>& in, const T* grad,
                 const PackedWeight<T>& weight, const std::vector<Block>& blocks, const Run& run,
                 const Tile& tile, SpreadScratch<T>& scratch, const Gradients<T>& out) {
  const int64_t outputs = shape.group_outputs(), rows = round_up(tile.count, kTileRows);
  const int64_t map = tile.image * shape.cells() * shape.channels;
  std::fill(scratch.products.begin(), scratch.products.end(), T(0));
  for (int64_t b = run.begin; b < run.end; ++b) {
    const Block& block = blocks[b];
    const int64_t width = round_up(block.size, kPanel<T>);
    load_grad(shape, grad, block.group, tile, scratch.grads.data());
    for (int64_t tap = 0; tap < shape.taps(); ++tap) {
      for (int64_t p = 0; p < rows; ++p)
        std::fill_n(scratch.columns.data() + p * kStride, width, T(0));
      for (int64_t o = 0; o < outputs; o += kBlock)
        multiply(rows, std::min(kBlock, outputs - o), width,
                 scratch.grads.data() + o / kBlock * kTile * kStride, weight.at(tap, b, o),
                 scratch.columns.data());
      spread_columns(shape, scratch.samples.data() + tap * kTile, tile.count,
                     scratch.columns.data(), block.size, in.input + map + block.begin,
                     out.input + map + block.begin, scratch.products.data() + tap * kTile * 4);
    }
  }
}

// Gradients of the offsets and the mask from scratch.products.
template <class T>
void store_products(const Shape& shape, const SpreadTask& task, const Tile& tile,
                    const SpreadScratch<T>& scratch, const Gradients<T>& out) {
  const int64_t n = shape.positions(), taps = shape.taps();
  const int64_t image = task.part * shape.batch + task.image;
  const int64_t plane = (image * shape.offset_groups + task.offset_group) * taps * n + tile.begin;
  for (int64_t tap = 0; tap < taps; ++tap) {
    T* by_y = out.offset + 2 * (plane + tap * n) - tile.begin;
    T* by_x = by_y + n;
    for (int64_t p = 0; p < tile.count; ++p) {
      const Sample<T>& sample = scratch.samples[tap * kTile + p];
      const T* corners = scratch.products.data() + (tap * kTile + p) * 4;
      by_y[p] = sample.by_y(corners);
      by_x[p] = sample.by_x(corners);
      if (out.mask != nullptr) out.mask[plane + tap * n + p] = sample.between(corners);
    }
  }
}

// The first pass: gradients of the input, and of offsets and mask in parts.
template <class T>
void spread_grad(const Shape& shape, const Arrays<T>& in, const T* grad,
                 const std::vector<Block>& blocks, const std::vector<Run>& runs,
                 const Gradients<T>& out) {
  const PackedWeight<T> weight(shape, in.weight, blocks, /*transposed=*/true);
  const int64_t count = int64_t(runs.size());
  torch::stable::parallel_for(0, shape.batch * count, 1, [&](int64_t begin, int64_t end) {
    SpreadScratch<T> scratch(shape);
    for (int64_t i = begin; i < end; ++i) {
      const Run& run = runs[i % count];
      const Block& first = blocks[run.begin];
      const SpreadTask task{i / count, first.offset_group, part_of(shape, first), run};
      for (int64_t t = 0; t < tiles_of(shape); ++t) {
        const Tile tile = tile_at(shape, task.image * tiles_of(shape) + t);
        for (int64_t tap = 0; tap < shape.taps(); ++tap)
          in.samples(shape, tile, task.offset_group, tap, scratch.samples.data() + tap * kTile);
        spread_tile(shape, in, grad, weight, blocks, run, tile, scratch, out);
        store_products(shape, task, tile, scratch, out);
      }
    }
  });
}

// parts (count, size) -> out (size): their sum, in that order.
template <class T>
void add_parts(const T* parts, int64_t count, int64_t size, T* out) {
  torch::stable::parallel_for(0, size, 1 << 14, [&](int64_t begin, int64_t end) {
    std::copy(parts + begin, parts + end, out + begin);
    for (int64_t part = 1; part < count; ++part)
      for (int64_t i = begin; i < end; ++i) out[i] += parts[part * size + i];
  });
}

// What a thread of the second pass works with.
template <class T>
struct WeighScratch {
  std::vector<Sample<T>> samples;  // of a tile
  std::vector<T> grads;            // of one group's outputs, as load_grad leaves them
  std::vector<T> columns;          // one block of kTile rows
  std::vector<T> sums;             // kSumRows rows for every kBlock outputs of a group

  explicit WeighScratch(const Shape& shape)
      : samples(kTile),
        grads(round_up(shape.group_outputs(), kBlock) / kBlock * kTile * kStride),
        columns(kTile * kStride),
        sums(round_up(shape.group_outputs(), kBlock) / kBlock * kSumRows * kStride) {}
};

// The gradient of the weights of one tap and one block of channels.
template <class T>
void weigh_block(const Shape& shape, const Arrays<T>& in, const T* grad, const Block& block,
                 int64_t tap, WeighScratch<T>& scratch, const Gradients<T>& out) {
  const int64_t outputs = shape.group_outputs(), in_group = shape.group_channels();
  std::fill(scratch.sums.begin(), scratch.sums.end(), T(0));
  for (int64_t t = 0; t < shape.batch * tiles_of(shape); ++t) {
    const Tile tile = tile_at(shape, t);
    in.samples(shape, tile, block.offset_group, tap, scratch.samples.data());
    const T* cells = in.input + tile.image * shape.cells() * shape.channels + block.begin;
    sample_columns(shape, scratch.samples.data(), tile.count, cells, block.size,
                   scratch.columns.data());
    load_grad(shape, grad, block.group, tile, scratch.grads.data());
    for (int64_t o = 0; o < outputs; o += kBlock)
      multiply_transposed(
          round_up(std::min(kBlock, outputs - o), kTileRows), tile.count,
          round_up(block.size, kPanel<T>), scratch.grads.data() + o / kBlock * kTile * kStride,
          scratch.columns.data(), scratch.sums.data() + o / kBlock * kSumRows * kStride);
  }
  T* weight =
      out.weight + (block.group * outputs * in_group + block.begin % in_group) * shape.taps() + tap;
  for (int64_t o = 0; o < outputs; ++o)
    for (int64_t c = 0; c < block.size; ++c)
      weight[(o * in_group + c) * shape.taps()] =
          scratch.sums[(o / kBlock * kSumRows + o % kBlock) * kStride + c];
}

template <class T>
void weigh_samples(const Shape& shape, const Arrays<T>& in, const T* grad,
                   const std::vector<Block>& blocks, const Gradients<T>& out) {
  const int64_t count = int64_t(blocks.size());
  torch::stable::parallel_for(0, shape.taps() * count, 1, [&](int64_t begin, int64_t end) {
    WeighScratch<T> scratch(shape);
    for (int64_t i = begin; i < end; ++i)
      weigh_block(shape, in, grad, blocks[i % count], i / count, scratch, out);
  });
}

using Result = std::tuple<Tensor, Tensor, Tensor, Tensor>;

template <class T>
Result run_backward(const Shape& shape, const Tensor& grad, const Tensor& input,
                    const Tensor& offset, const std::optional<Tensor>& mask, const Tensor& weight) {
  const Arguments<T> args(input, offset, mask, weight);
  const Arrays<T> in(args);
  const Tensor grad_rows = as_rows<T>(grad);
  const std::vector<Block> blocks = channel_blocks(shape, kNarrow);
  const std::vector<Run> runs = runs_of(blocks, [&](const Block& block) {
    return std::make_pair(block.offset_group, part_of(shape, block));
  });
  int64_t parts = 1;
  for (const Run& run : runs) parts = std::max(parts, part_of(shape, blocks[run.begin]) + 1);

  Tensor grad_input = torch::stable::new_zeros(
      args.input, {shape.batch, shape.y.size, shape.x.size, shape.channels});
  Tensor grad_weight = torch::stable::empty_like(args.weight);
  Tensor grad_offset = torch::stable::empty_like(args.offset);
  Tensor grad_mask =
      mask ? torch::stable::empty_like(*args.mask) : torch::stable::new_empty(args.offset, {0});
  // An offset group may have fewer parts than another: those it lacks stay zero.
  Tensor offset_parts = torch::stable::new_zeros(args.offset, {parts, grad_offset.numel()});
  Tensor mask_parts = torch::stable::new_zeros(args.offset, {parts, grad_mask.numel()});
  const Gradients<T> out{grad_input.mutable_data_ptr<T>(), offset_parts.mutable_data_ptr<T>(),
                         mask ? mask_parts.mutable_data_ptr<T>() : nullptr,
                         grad_weight.mutable_data_ptr<T>()};
  const T* rows = grad_rows.const_data_ptr<T>();
  spread_grad(shape, in, rows, blocks, runs, out);
  add_parts(out.offset, parts, grad_offset.numel(), grad_offset.mutable_data_ptr<T>());
  if (mask) add_parts(out.mask, parts, grad_mask.numel(), grad_mask.mutable_data_ptr<T>());
  weigh_samples(shape, in, rows, blocks, out);
  return {as_maps<T>(grad_input, input), as_contiguous(grad_offset, offset.scalar_type()),
          as_contiguous(grad_mask, mask ? mask->scalar_type() : offset.scalar_type()),
          as_contiguous(grad_weight, weight.scalar_type())};
}

}  // namespace

// grad (B, O, OH, OW) of the output -> gradients of input, offset, mask (empty without one) and
// weight. deterministic: they always are, here.
Result deform_conv2d_backward_cpu(const Tensor& grad, const Tensor& input, const Tensor& offset,
                                  const std::optional<Tensor>& mask, const Tensor& weight,
                                  std::vector<int64_t> stride, std::vector<int64_t> padding,
                                  std::vector<int64_t> dilation, bool /*deterministic*/) {
  const Shape shape = make_shape(input, offset, mask, weight, stride, padding, dilation);
  check_grad(grad, input, shape);
  return compute_type(input.scalar_type()) == ScalarType::Double
             ? run_backward<double>(shape, grad, input, offset, mask, weight)
             : run_backward<float>(shape, grad, input, offset, mask, weight);
}

}  // namespace segdet::deform_conv

STABLE_TORCH_LIBRARY_FRAGMENT(segdet, m) {
  m.def(
      "deform_conv2d_backward(Tensor grad, Tensor input, Tensor offset, Tensor? mask, "
      "Tensor weight, SymInt[] stride, SymInt[] padding, SymInt[] dilation, bool deterministic) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(segdet, CPU, m) {
  m.impl("deform_conv2d_backward", TORCH_BOX(&segdet::deform_conv::deform_conv2d_backward_cpu));
}
