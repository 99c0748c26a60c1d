// Where PointRend's samples lie (arXiv:1912.08193, section 3.1), for CPU and CUDA: a map is
// [0, 1] x [0, 1], a sample is bilinear between four cells, and beyond the map all is zero.
#pragma once

#include <cmath>

#include "../feature_map.h"
#include "../roi_align/roi_align.h"

namespace segdet::point_sample {

// The two cells of one axis that a sample lies between. In place of one off the map stands its
// neighbour, of which nothing more is taken.
template <class T>
struct Pair {
  int64_t cell[2];
  T weight[2];
  T slope[2];  // change of the weights per cell
};

// False: nothing of the map is near, or the coordinate is not a number.
template <class T>
SEGDET_HOST_DEVICE bool pair_at(T coordinate, int64_t size, bool align_corners, Pair<T>& pair) {
  const T position =
      align_corners ? coordinate * T(size - 1) : coordinate * T(size) - T(0.5);  // in cells
  if (!(position > T(-1) && position < T(size))) return false;
  const T below = floor(position), fraction = position - below;
  const int64_t low = int64_t(below);
  const bool has_low = low >= 0, has_high = low + 1 < size;
  pair.cell[0] = has_low ? low : 0;
  pair.cell[1] = has_high ? low + 1 : size - 1;
  pair.weight[0] = has_low ? T(1) - fraction : T(0);
  pair.weight[1] = has_high ? fraction : T(0);
  pair.slope[0] = has_low ? T(-1) : T(0);
  pair.slope[1] = has_high ? T(1) : T(0);
  return true;
}

// Positions per coordinate along an axis.
template <class T>
SEGDET_HOST_DEVICE T cells_per_unit(int64_t size, bool align_corners) {
  return T(align_corners ? size - 1 : size);
}

using torch::headeronly::MemoryFormat;

// Of the device of `like`. channels_last: as has_channels_last says of the map itself.
inline Tensor empty_map(const Tensor& like, std::array<int64_t, 4> sizes, ScalarType type,
                        bool channels_last) {
  return torch::stable::empty(
      sizes, type, std::nullopt, like.device(), std::nullopt,
      channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

inline void check_points(const Tensor& point_coords, int64_t batch, const char* op) {
  SEGDET_CHECK(
      point_coords.dim() == 3 && point_coords.size(0) == batch && point_coords.size(2) == 2,
      "segdet::", op, ": point_coords must be (N, P, 2) with N = ", batch, ", has ",
      point_coords.dim(), " dimensions, the last of size ",
      point_coords.dim() > 0 ? point_coords.size(-1) : 0);
  SEGDET_CHECK(is_floating(point_coords.scalar_type()), "segdet::", op,
               ": point_coords must be floating point, is ",
               torch::headeronly::toString(point_coords.scalar_type()));
}

inline void check_samples(const Tensor& grad, const Tensor& point_coords, const char* op) {
  SEGDET_CHECK(grad.dim() == 3, "segdet::", op, ": grad must be (N, C, P), has ", grad.dim(),
               " dimensions");
  SEGDET_CHECK(is_floating(grad.scalar_type()), "segdet::", op,
               ": grad must be floating point, is ",
               torch::headeronly::toString(grad.scalar_type()));
  check_points(point_coords, grad.size(0), op);
  SEGDET_CHECK(grad.size(2) == point_coords.size(1), "segdet::", op,
               ": grad must be (N, C, P) with P = ", point_coords.size(1), ", has ", grad.size(2));
}

inline void check_forward(const Tensor& input, const Tensor& point_coords) {
  check_map(input, "input", "point_sample");
  check_cells(input.size(2), input.size(3), "point_sample");
  check_points(point_coords, input.size(0), "point_sample");
}

inline void check_backward(const Tensor& grad, const Tensor& point_coords, int64_t height,
                           int64_t width) {
  check_samples(grad, point_coords, "point_sample_backward");
  check_cells(height, width, "point_sample_backward");
}

inline void check_coords_backward(const Tensor& grad, const Tensor& input,
                                  const Tensor& point_coords) {
  constexpr const char* kOp = "point_sample_coords_backward";
  check_map(input, "input", kOp);
  check_cells(input.size(2), input.size(3), kOp);
  check_samples(grad, point_coords, kOp);
  SEGDET_CHECK(grad.size(0) == input.size(0) && grad.size(1) == input.size(1) &&
                   grad.scalar_type() == input.scalar_type(),
               "segdet::", kOp, ": grad must be (N, C, P) with N = ", input.size(0),
               ", C = ", input.size(1), " and of input's type");
}

}  // namespace segdet::point_sample
