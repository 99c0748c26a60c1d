// Deformable convolution and its gradients on CUDA.
//
// The samples of some images are written out as a matrix, the "columns", and multiplied by the
// weights with torch's own product; half stays half there, with sums in float32. Channels lie
// beside each other in all arrays, and 32 threads share a sample and walk along its channels.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "../cuda.cuh"
#include "../scatter.cuh"
#include "deform_conv.h"

namespace segdet::deform_conv {
namespace {

constexpr int64_t kColumnBytes = int64_t(256) << 20;  // as many images at once as fit in this
constexpr int kLanes = 32;                            // threads of a sample
constexpr int kSamples = kThreads / kLanes;           // of a block

// In: the type of the features; T: the one computed in.
template <class In, class T>
struct Images {
  Shape shape;
  int64_t first, count;    // the images worked on
  const In* input;         // (B, H, W, C)
  const T *offset, *mask;  // (B, D, taps, 2, positions) and (B, D, taps, positions) or null

  __host__ __device__ int64_t rows() const { return count * shape.positions(); }
  __host__ __device__ int64_t samples() const {
    return rows() * shape.taps() * shape.offset_groups;
  }
};

// One sample, by its number; tap by tap, and the offset groups of a tap next to each other.
template <class T>
struct Place {
  int64_t image, position, row, tap, offset_group;
  int64_t plane;  // of its (image, offset group, tap), in units of positions
  Sample<T> sample;
};

template <class In, class T>
__device__ Place<T> place_of(const Images<In, T>& in, int64_t index) {
  const Shape& shape = in.shape;
  const int64_t taps = shape.taps(), positions = shape.positions();
  Place<T> at;
  at.offset_group = index % shape.offset_groups;
  at.tap = index / shape.offset_groups % taps;
  at.row = index / shape.offset_groups / taps;
  at.image = in.first + at.row / positions;
  at.position = at.row % positions;
  const int64_t group = (at.image * shape.offset_groups + at.offset_group) * taps;
  at.plane = group + at.tap;
  at.sample =
      sample_of(shape, in.offset + 2 * group * positions,
                in.mask == nullptr ? nullptr : in.mask + group * positions, at.tap, at.position);
  return at;
}

// columns (groups, rows, taps, C / groups): where a channel of a sample stands.
template <class In, class T>
__device__ int64_t column_of(const Images<In, T>& in, const Place<T>& at, int64_t channel) {
  const int64_t in_group = in.shape.group_channels(), group = channel / in_group;
  return ((group * in.rows() + at.row) * in.shape.taps() + at.tap) * in_group + channel % in_group;
}

template <class In, class T>
__global__ void columns_kernel(Images<In, T> in, In* columns) {
  const int64_t channels = in.shape.channels, share = in.shape.offset_channels();
  for (int64_t i = thread_index() / kLanes; i < in.samples(); i += thread_count() / kLanes) {
    const Place<T> at = place_of(in, i);
    const In* map = in.input + at.image * in.shape.cells() * channels;
    for (int64_t c = threadIdx.x % kLanes; c < share; c += kLanes) {
      const int64_t channel = at.offset_group * share + c;
      T value = 0;
      for (int k = 0; k < 4; ++k) {
        const int64_t cell = at.sample.cell(k, in.shape.y.size, in.shape.x.size);
        if (cell >= 0) value += at.sample.weight(k) * T(map[cell * channels + channel]);
      }
      columns[column_of(in, at, channel)] = In(value * at.sample.mask);
    }
  }
}

// columns: gradients of the samples. Gives those of offset and mask, and multiplies the columns by
// the mask.
template <class In, class T>
__global__ void offset_gradient_kernel(Images<In, T> in, In* columns, T* grad_offset,
                                       T* grad_mask) {
  __shared__ T products[4][kThreads];  // of a sample's gradient with each corner
  const int64_t channels = in.shape.channels, share = in.shape.offset_channels();
  const int64_t positions = in.shape.positions();
  const int lane = threadIdx.x % kLanes;
  // All threads of a block turn as often, as they wait for each other.
  for (int64_t first = int64_t(blockIdx.x) * kSamples; first < in.samples();
       first += int64_t(gridDim.x) * kSamples) {
    const int64_t i = first + threadIdx.x / kLanes;
    const Place<T> at = place_of(in, i < in.samples() ? i : 0);
    const In* map = in.input + at.image * in.shape.cells() * channels;
    T sum[4] = {0, 0, 0, 0};
    for (int64_t c = lane; i < in.samples() && c < share; c += kLanes) {
      const int64_t channel = at.offset_group * share + c;
      In& column = columns[column_of(in, at, channel)];
      const T grad = T(column);
      for (int k = 0; k < 4; ++k) {
        const int64_t cell = at.sample.cell(k, in.shape.y.size, in.shape.x.size);
        if (cell >= 0) sum[k] += grad * T(map[cell * channels + channel]);
      }
      if (grad_mask != nullptr) column = In(grad * at.sample.mask);
    }
    for (int k = 0; k < 4; ++k) products[k][threadIdx.x] = sum[k];
    for (int half = kLanes / 2; half > 0; half /= 2) {
      __syncthreads();
      if (lane < half)
        for (int k = 0; k < 4; ++k) products[k][threadIdx.x] += products[k][threadIdx.x + half];
    }
    if (lane == 0 && i < in.samples()) {
      T corners[4];
      for (int k = 0; k < 4; ++k) corners[k] = products[k][threadIdx.x];
      grad_offset[2 * at.plane * positions + at.position] = at.sample.by_y(corners);
      grad_offset[(2 * at.plane + 1) * positions + at.position] = at.sample.by_x(corners);
      if (grad_mask != nullptr)
        grad_mask[at.plane * positions + at.position] = at.sample.between(corners);
    }
    __syncthreads();
  }
}

// columns: gradients of the samples times the mask. sum: cells of the first of the images onwards.
template <class In, class T, class Sum>
__global__ void input_gradient_kernel(Images<In, T> in, const In* columns, Sum sum) {
  const int64_t channels = in.shape.channels, share = in.shape.offset_channels();
  for (int64_t i = thread_index() / kLanes; i < in.samples(); i += thread_count() / kLanes) {
    const Place<T> at = place_of(in, i);
    const int64_t map = (at.image - in.first) * in.shape.cells();
    for (int64_t c = threadIdx.x % kLanes; c < share; c += kLanes) {
      const int64_t channel = at.offset_group * share + c;
      const T grad = T(columns[column_of(in, at, channel)]);
      for (int k = 0; k < 4; ++k) {
        const int64_t cell = at.sample.cell(k, in.shape.y.size, in.shape.x.size);
        if (cell >= 0) sum.add((map + cell) * channels + channel, at.sample.weight(k) * grad);
      }
    }
  }
}

template <class In, class T>
__global__ void add_bias_kernel(In* rows, const In* bias, int64_t outputs, int64_t total) {
  for (int64_t i = thread_index(); i < total; i += thread_count())
    rows[i] = In(T(rows[i]) + T(bias[i % outputs]));
}

// out = a b for every group; out may be strided.
void multiply_into(Tensor& out, const Tensor& a, const Tensor& b) {
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack{from(a), from(b), from(out)};
  call_torch("aten::bmm", "out", stack);
  torch::stable::detail::to<Tensor>(stack[0]);  // `out` once more, which this owns and drops
}

Tensor transposed(const Tensor& matrices) { return torch::stable::transpose(matrices, 1, 2); }

// weight (O, C / groups, h, w) -> (groups, taps * C / groups, O / groups).
Tensor as_matrices(const Shape& shape, const Tensor& weight) {
  const std::array<int64_t, 4> split{shape.groups, shape.group_outputs(), shape.group_channels(),
                                     shape.taps()};
  const std::array<int64_t, 3> sizes{shape.groups, shape.taps() * shape.group_channels(),
                                     shape.group_outputs()};
  const Tensor ordered = torch::stable::transpose(torch::stable::reshape(weight, split), 1, 3);
  return torch::stable::reshape(torch::stable::contiguous(ordered), sizes);
}

// The reverse.
Tensor as_weight(const Shape& shape, const Tensor& matrices) {
  const std::array<int64_t, 4> split{shape.groups, shape.taps(), shape.group_channels(),
                                     shape.group_outputs()};
  const std::array<int64_t, 4> sizes{shape.outputs, shape.group_channels(), shape.y.kernel,
                                     shape.x.kernel};
  const Tensor ordered = torch::stable::transpose(torch::stable::reshape(matrices, split), 1, 3);
  return torch::stable::reshape(ordered, sizes);
}

// maps (B, H, W, O), contiguous: images [first, first + count) as (groups, rows, O / groups).
Tensor group_rows(const Shape& shape, const Tensor& maps, int64_t first, int64_t count) {
  Tensor images = maps;
  images = torch::stable::narrow(images, 0, first, count);
  const std::array<int64_t, 3> sizes{count * shape.positions(), shape.groups,
                                     shape.group_outputs()};
  return torch::stable::transpose(torch::stable::view(images, sizes), 0, 1);
}

// The op's arguments on the device, and the steps in which they are worked on.
template <class In, class T>
struct Arguments {
  Shape shape;
  Tensor input, offset;
  std::optional<Tensor> mask;
  Tensor weight;  // as_matrices

  Arguments(const Shape& shape, const Tensor& input, const Tensor& offset,
            const std::optional<Tensor>& mask, const Tensor& weight)
      : shape(shape),
        input(torch::stable::contiguous(channels_last(input))),
        offset(as_contiguous(offset, compute_type(input.scalar_type()))),
        weight(as_matrices(shape, weight)) {
    if (mask) this->mask = as_contiguous(*mask, compute_type(input.scalar_type()));
  }

  int64_t images_per_step() const {
    const int64_t bytes = shape.positions() * shape.taps() * shape.channels * int64_t(sizeof(In));
    return std::max<int64_t>(1, kColumnBytes / bytes);
  }

  Images<In, T> images(int64_t first) const {
    return {shape,
            first,
            std::min(images_per_step(), shape.batch - first),
            static_cast<const In*>(input.const_data_ptr()),
            offset.template const_data_ptr<T>(),
            mask ? mask->template const_data_ptr<T>() : nullptr};
  }

  Tensor new_columns(const Images<In, T>& in) const {
    return torch::stable::new_empty(
        input, {shape.groups, in.rows(), shape.taps() * shape.group_channels()});
  }
};

template <class In, class T>
void write_columns(const Images<In, T>& in, Tensor& columns, cudaStream_t stream) {
  SEGDET_LAUNCH((columns_kernel<In, T>), blocks_for(in.samples() * kLanes), kThreads, stream)
  (in, static_cast<In*>(columns.mutable_data_ptr()));
}

template <class In, class T>
Tensor forward(const Arguments<In, T>& args, const std::optional<Tensor>& bias) {
  const Shape& shape = args.shape;
  const cudaStream_t stream = current_stream(args.input);
  Tensor out =
      torch::stable::new_empty(args.input, {shape.batch, shape.y.out, shape.x.out, shape.outputs});
  for (int64_t first = 0; first < shape.batch; first += args.images_per_step()) {
    const Images<In, T> in = args.images(first);
    Tensor columns = args.new_columns(in);
    write_columns(in, columns, stream);
    Tensor rows = group_rows(shape, out, first, in.count);
    multiply_into(rows, columns, args.weight);
  }
  if (bias && out.numel() > 0) {
    const Tensor values = torch::stable::contiguous(*bias);
    SEGDET_LAUNCH((add_bias_kernel<In, T>), blocks_for(out.numel()), kThreads, stream)
    (static_cast<In*>(out.mutable_data_ptr()), static_cast<const In*>(values.const_data_ptr()),
     shape.outputs, out.numel());
  }
  check_launch("deform_conv2d");
  return out;
}

using Result = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// Gradients of input (B, H, W, C), offset, mask and weight.
template <class In, class T>
Result backward(const Arguments<In, T>& args, const Tensor& grad, bool deterministic) {
  const Shape& shape = args.shape;
  const cudaStream_t stream = current_stream(args.input);
  const ScalarType type = args.offset.scalar_type();
  const int64_t step = args.images_per_step(), steps = (shape.batch + step - 1) / step;
  const Tensor grad_rows = torch::stable::contiguous(channels_last(grad));
  Tensor grad_input = torch::stable::new_empty(
      args.offset, {shape.batch, shape.y.size, shape.x.size, shape.channels});
  Tensor grad_offset = torch::stable::empty_like(args.offset);
  Tensor grad_mask = args.mask ? torch::stable::empty_like(*args.mask)
                               : torch::stable::new_empty(args.offset, {0});
  Tensor grad_weights = torch::stable::new_empty(
      args.weight, {steps, args.weight.size(0), args.weight.size(1), args.weight.size(2)});
  for (int64_t first = 0; first < shape.batch; first += step) {
    const Images<In, T> in = args.images(first);
    const Tensor rows = group_rows(shape, grad_rows, first, in.count);
    Tensor columns = args.new_columns(in);
    write_columns(in, columns, stream);
    Tensor grad_weight = torch::stable::select(grad_weights, 0, first / step);
    multiply_into(grad_weight, transposed(columns), rows);

    multiply_into(columns, rows, transposed(args.weight));
    In* values = static_cast<In*>(columns.mutable_data_ptr());
    SEGDET_LAUNCH((offset_gradient_kernel<In, T>), blocks_for(in.samples() * kLanes), kThreads,
                  stream)
    (in, values, grad_offset.mutable_data_ptr<T>(),
     args.mask ? grad_mask.mutable_data_ptr<T>() : nullptr);
    Tensor maps = torch::stable::narrow(grad_input, 0, first, in.count);
    scatter_into<T>(maps, columns, deterministic, [&](auto sum) {
      SEGDET_LAUNCH((input_gradient_kernel<In, T, decltype(sum)>),
                    blocks_for(in.samples() * kLanes), kThreads, stream)
      (in, values, sum);
    });
  }
  check_launch("deform_conv2d_backward");
  const std::array<int64_t, 1> over_steps{0};
  const Tensor grad_weight = torch::stable::sum(grad_weights, over_steps, false, type);
  return {grad_input, grad_offset, grad_mask, as_weight(shape, grad_weight)};
}

// run(In, T): with the features' type and the one to compute in.
template <class Run>
auto with_types(ScalarType type, const Run& run) {
  switch (type) {
    case ScalarType::Double:
      return run(double(), double());
    case ScalarType::Half:
      return run(__half(), float());
    case ScalarType::BFloat16:
      return run(__nv_bfloat16(), float());
    default:
      return run(float(), float());
  }
}

void check_devices(const Tensor& input, const Tensor& offset, const std::optional<Tensor>& mask,
                   const Tensor& weight) {
  check_same_device(input, offset, "deform_conv2d");
  check_same_device(input, weight, "deform_conv2d");
  if (mask) check_same_device(input, *mask, "deform_conv2d");
}

}  // namespace

Tensor deform_conv2d_cuda(const Tensor& input, const Tensor& offset,
                          const std::optional<Tensor>& mask, const Tensor& weight,
                          const std::optional<Tensor>& bias, std::vector<int64_t> stride,
                          std::vector<int64_t> padding, std::vector<int64_t> dilation) {
  const Shape shape = make_shape(input, offset, mask, weight, stride, padding, dilation);
  check_bias(input, bias, shape);
  check_devices(input, offset, mask, weight);
  if (bias) check_same_device(input, *bias, "deform_conv2d");
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  const Tensor out = with_types(input.scalar_type(), [&](auto in, auto wide) {
    const Arguments<decltype(in), decltype(wide)> args(shape, input, offset, mask, weight);
    return forward(args, bias);
  });
  const Tensor maps = channels_first(out);
  return has_channels_last(input) ? maps : torch::stable::contiguous(maps);
}

Result deform_conv2d_backward_cuda(const Tensor& grad, const Tensor& input, const Tensor& offset,
                                   const std::optional<Tensor>& mask, const Tensor& weight,
                                   std::vector<int64_t> stride, std::vector<int64_t> padding,
                                   std::vector<int64_t> dilation, bool deterministic) {
  const Shape shape = make_shape(input, offset, mask, weight, stride, padding, dilation);
  check_grad(grad, input, shape);
  check_devices(input, offset, mask, weight);
  check_same_device(input, grad, "deform_conv2d_backward");
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  const auto [of_rows, of_offset, of_mask, of_weight] =
      with_types(input.scalar_type(), [&](auto in, auto wide) {
        const Arguments<decltype(in), decltype(wide)> args(shape, input, offset, mask, weight);
        return backward(args, grad, deterministic);
      });
  const Tensor of_input = channels_first(as_contiguous(of_rows, input.scalar_type()));
  return {has_channels_last(input) ? of_input : torch::stable::contiguous(of_input),
          as_contiguous(of_offset, offset.scalar_type()),
          as_contiguous(of_mask, mask ? mask->scalar_type() : offset.scalar_type()),
          as_contiguous(of_weight, weight.scalar_type())};
}

}  // namespace segdet::deform_conv

SEGDET_CUDA_IMPL(m) {
  m.impl("deform_conv2d", TORCH_BOX(&segdet::deform_conv::deform_conv2d_cuda));
  m.impl("deform_conv2d_backward", TORCH_BOX(&segdet::deform_conv::deform_conv2d_backward_cuda));
}
