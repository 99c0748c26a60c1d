// Deformable convolution (v1: Dai et al. 2017, arXiv:1703.06211; v2, with a mask: Zhu et al. 2018,
// arXiv:1811.11168): shapes, checks and where the samples lie, for CPU and CUDA.
//
// A "tap" is one place of the kernel, ky * kernel width + kx; a "position" is a cell of the output,
// a "cell" one of the input. Offset group d moves the samples of channels [d, d + 1) * C / D.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "../feature_map.h"

namespace segdet::deform_conv {

struct Axis {
  int64_t size, kernel, stride, padding, dilation;
  int64_t out;  // positions

  // Where the tap would sample if it had no offset.
  SEGDET_HOST_DEVICE int64_t origin(int64_t position, int64_t tap) const {
    return position * stride - padding + tap * dilation;
  }
};

struct Shape {
  int64_t batch, channels, outputs, groups, offset_groups;
  Axis y, x;

  SEGDET_HOST_DEVICE int64_t taps() const { return y.kernel * x.kernel; }
  SEGDET_HOST_DEVICE int64_t cells() const { return y.size * x.size; }
  SEGDET_HOST_DEVICE int64_t positions() const { return y.out * x.out; }
  SEGDET_HOST_DEVICE int64_t group_channels() const { return channels / groups; }
  SEGDET_HOST_DEVICE int64_t group_outputs() const { return outputs / groups; }
  SEGDET_HOST_DEVICE int64_t offset_channels() const { return channels / offset_groups; }
};

// A bilinear sample: between four cells, of which those off the map count as zero.
template <class T>
struct Sample {
  int32_t y, x;  // of the upper left cell
  T fy, fx;      // how far below and right of it, in [0, 1)
  T mask;

  // corner: 2 * (lower) + (right). -1: off the map.
  SEGDET_HOST_DEVICE int64_t cell(int corner, int64_t height, int64_t width) const {
    const int64_t row = y + (corner >> 1), column = x + (corner & 1);
    const bool inside = row >= 0 && row < height && column >= 0 && column < width;
    return inside ? row * width + column : -1;
  }
  SEGDET_HOST_DEVICE T weight(int corner) const {
    return (corner >> 1 ? fy : 1 - fy) * (corner & 1 ? fx : 1 - fx);
  }
  // Without the mask.
  SEGDET_HOST_DEVICE T between(const T* corners) const {
    return weight(0) * corners[0] + weight(1) * corners[1] + weight(2) * corners[2] +
           weight(3) * corners[3];
  }
  // The sample's derivatives by y and x, times the mask, from what its corners have. At a whole
  // number it is the right-hand derivative, also at -1, where the sample itself is zero.
  SEGDET_HOST_DEVICE T by_y(const T* corners) const {
    return mask * ((1 - fx) * (corners[2] - corners[0]) + fx * (corners[3] - corners[1]));
  }
  SEGDET_HOST_DEVICE T by_x(const T* corners) const {
    return mask * ((1 - fy) * (corners[1] - corners[0]) + fy * (corners[3] - corners[2]));
  }
};

template <class T>
SEGDET_HOST_DEVICE Sample<T> sample_at(T y, T x, T mask, int64_t height, int64_t width) {
  // Off the map, or not a number.
  if (!(y >= T(-1) && y < T(height) && x >= T(-1) && x < T(width)))
    return {-2, -2, T(0), T(0), mask};
  const T top = floor(y), left = floor(x);
  return {int32_t(top), int32_t(left), y - top, x - left, mask};
}

// offset: (2, taps, positions) of one image and offset group, as y, x of each tap; mask: (taps,
// positions) likewise, or null.
template <class T>
SEGDET_HOST_DEVICE Sample<T> sample_of(const Shape& shape, const T* offset, const T* mask,
                                       int64_t tap, int64_t position) {
  const int64_t positions = shape.positions();
  const int64_t oy = position / shape.x.out, ox = position % shape.x.out;
  const int64_t ky = tap / shape.x.kernel, kx = tap % shape.x.kernel;
  const T y = T(shape.y.origin(oy, ky)) + offset[2 * tap * positions + position];
  const T x = T(shape.x.origin(ox, kx)) + offset[(2 * tap + 1) * positions + position];
  const T scale = mask == nullptr ? T(1) : mask[tap * positions + position];
  return sample_at(y, x, scale, shape.y.size, shape.x.size);
}

inline void check_type(const Tensor& tensor, const char* name, ScalarType type) {
  SEGDET_CHECK(tensor.scalar_type() == type, "segdet::deform_conv2d: ", name,
               " must have the type of input, ", torch::headeronly::toString(type), ", is ",
               torch::headeronly::toString(tensor.scalar_type()));
}

inline void check_floating(const Tensor& tensor, const char* name) {
  SEGDET_CHECK(is_floating(tensor.scalar_type()), "segdet::deform_conv2d: ", name,
               " must be floating point, is ", torch::headeronly::toString(tensor.scalar_type()));
}

inline void check_sizes(const Tensor& tensor, const char* name, const char* rule,
                        const std::vector<int64_t>& sizes) {
  bool equal = tensor.dim() == int64_t(sizes.size());
  std::string wanted, found;
  for (std::size_t i = 0; i < sizes.size(); ++i) wanted += text(i > 0 ? ", " : "", sizes[i]);
  for (int64_t i = 0; i < tensor.dim(); ++i) {
    equal = equal && tensor.size(i) == sizes[i];
    found += text(i > 0 ? ", " : "", tensor.size(i));
  }
  SEGDET_CHECK(equal, "segdet::deform_conv2d: ", name, " must be ", rule, " = (", wanted, "), is (",
               found, ")");
}

inline Axis make_axis(const char* name, int64_t size, int64_t kernel, int64_t stride,
                      int64_t padding, int64_t dilation) {
  SEGDET_CHECK(kernel > 0 && stride > 0 && padding >= 0 && dilation > 0,
               "segdet::deform_conv2d: kernel, stride and dilation must be positive and padding "
               "not negative, are ",
               kernel, ", ", stride, ", ", dilation, " and ", padding, " for ", name);
  const int64_t least = dilation * (kernel - 1) + 1 - 2 * padding;
  SEGDET_CHECK(size >= std::max<int64_t>(least, 1) && size < (int64_t(1) << 31),
               "segdet::deform_conv2d: ", name, " of input must be in [",
               std::max<int64_t>(least, 1), ", 2^31), is ", size);
  return {size, kernel, stride, padding, dilation, (size - least) / stride + 1};
}

// What the tensors say together; an error where they contradict each other.
inline Shape make_shape(const Tensor& input, const Tensor& offset,
                        const std::optional<Tensor>& mask, const Tensor& weight,
                        const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                        const std::vector<int64_t>& dilation) {
  SEGDET_CHECK(input.dim() == 4, "segdet::deform_conv2d: input must be (B, C, H, W), has ",
               input.dim(), " dimensions");
  SEGDET_CHECK(weight.dim() == 4,
               "segdet::deform_conv2d: weight must be (O, C / groups, h, w), has ", weight.dim(),
               " dimensions");
  SEGDET_CHECK(offset.dim() == 4,
               "segdet::deform_conv2d: offset must be (B, 2 * D * h * w, H, W), "
               "has ",
               offset.dim(), " dimensions");
  check_floating(input, "input");
  check_floating(offset, "offset");
  check_type(weight, "weight", input.scalar_type());
  SEGDET_CHECK(stride.size() == 2 && padding.size() == 2 && dilation.size() == 2,
               "segdet::deform_conv2d: stride, padding and dilation must be two numbers each, are ",
               stride.size(), ", ", padding.size(), " and ", dilation.size());
  Shape shape{
      input.size(0),
      input.size(1),
      weight.size(0),
      1,
      1,
      make_axis("height", input.size(2), weight.size(2), stride[0], padding[0], dilation[0]),
      make_axis("width", input.size(3), weight.size(3), stride[1], padding[1], dilation[1])};
  const int64_t depth = weight.size(1);
  SEGDET_CHECK(depth > 0 && shape.channels > 0 && shape.channels % depth == 0,
               "segdet::deform_conv2d: input's channels must be a multiple of weight's ", depth,
               ", are ", shape.channels);
  shape.groups = shape.channels / depth;
  SEGDET_CHECK(shape.outputs > 0 && shape.outputs % shape.groups == 0,
               "segdet::deform_conv2d: weight's ", shape.outputs,
               " outputs must be a multiple of the groups, ", shape.groups);
  shape.offset_groups = offset.size(1) / (2 * shape.taps());
  SEGDET_CHECK(shape.offset_groups > 0 && shape.channels % shape.offset_groups == 0,
               "segdet::deform_conv2d: offset must have 2 * D * ", shape.taps(),
               " channels, D a divisor of input's ", shape.channels, ", has ", offset.size(1));
  const int64_t samples = shape.offset_groups * shape.taps();
  check_sizes(offset, "offset", "(B, 2 * D * h * w, H, W)",
              {shape.batch, 2 * samples, shape.y.out, shape.x.out});
  if (mask) {
    check_floating(*mask, "mask");
    check_sizes(*mask, "mask", "(B, D * h * w, H, W)",
                {shape.batch, samples, shape.y.out, shape.x.out});
  }
  return shape;
}

inline void check_bias(const Tensor& input, const std::optional<Tensor>& bias, const Shape& shape) {
  if (!bias) return;
  check_type(*bias, "bias", input.scalar_type());
  check_sizes(*bias, "bias", "(O,)", {shape.outputs});
}

inline void check_grad(const Tensor& grad, const Tensor& input, const Shape& shape) {
  check_type(grad, "grad", input.scalar_type());
  check_sizes(grad, "grad", "(B, O, H, W)", {shape.batch, shape.outputs, shape.y.out, shape.x.out});
}

// Channels beside each other, as cells and positions are worked on: (B, H, W, C). By transposing
// twice, since torch 2.11's headers have no permute.
inline Tensor channels_last(const Tensor& maps) {
  return torch::stable::transpose(torch::stable::transpose(maps, 1, 2), 2, 3);
}

// The reverse of that view.
inline Tensor channels_first(const Tensor& rows) {
  return torch::stable::transpose(torch::stable::transpose(rows, 2, 3), 1, 2);
}

}  // namespace segdet::deform_conv
