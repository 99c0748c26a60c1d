// Where the pixels of an image fall in a mask that is stretched over a box, for CPU and CUDA. Both
// axes follow the same rule, so everything here is about one axis.
#pragma once

#include <cmath>
#include <limits>

#include "../stable.h"

namespace segdet::paste_masks {

// One axis of one box. Positions are in cells of the mask, cell centres being whole numbers.
template <class T>
struct Axis {
  T low;              // where the box starts, in pixels
  T cells_per_pixel;  // 0: the box has no extent, or none that is finite
};

template <class T>
SEGDET_HOST_DEVICE Axis<T> make_axis(T low, T high, int64_t side) {
  const T extent = high - low;
  return {low, extent > T(0) ? T(side) / extent : T(0)};
}

// A pixel lies between the centres of `cell` and `cell + 1`, of which it takes `fraction`. One of
// them may be -1 or `side`: beyond the mask everything is 0.
template <class T>
struct Place {
  int32_t cell;
  T fraction;
};

// False: the mask does not reach the pixel, whose centre is at pixel + 0.5.
template <class T>
SEGDET_HOST_DEVICE bool place_of(int64_t pixel, const Axis<T>& axis, int64_t side,
                                 Place<T>& place) {
  const T position = (T(pixel) + T(0.5) - axis.low) * axis.cells_per_pixel - T(0.5);
  if (!(axis.cells_per_pixel > T(0) && position > T(-1) && position < T(side))) return false;
  const T cell = floor(position);
  place = {int32_t(cell), position - cell};
  return true;
}

// Exactly a where a == b, so that a mask that is all threshold is all drawn.
template <class T>
SEGDET_HOST_DEVICE T between(T a, T b, T fraction) {
  return a + fraction * (b - a);
}

// A pixel of probability 0 is never drawn, whatever the threshold.
template <class T>
T lowest_drawn(double threshold) {
  return std::fmax(T(threshold), std::numeric_limits<T>::min());
}

template <class T>
SEGDET_HOST_DEVICE uint8_t as_byte(T probability) {
  const T scaled = probability * T(255);
  return uint8_t(int32_t(scaled > T(0) ? (scaled < T(255) ? scaled : T(255)) : T(0)));
}

inline void check_paste_masks(const Tensor& masks, const Tensor& boxes, int64_t height,
                              int64_t width) {
  SEGDET_CHECK(masks.dim() == 3 && masks.size(1) == masks.size(2),
               "segdet::paste_masks: masks must be (N, M, M), has ", masks.dim(),
               " dimensions, the last of size ", masks.dim() > 0 ? masks.size(-1) : 0);
  SEGDET_CHECK(boxes.dim() == 2 && boxes.size(0) == masks.size(0) && boxes.size(1) == 4,
               "segdet::paste_masks: boxes must be (N, 4) with N = ", masks.size(0), ", has ",
               boxes.dim(), " dimensions and ", boxes.numel(), " elements");
  for (const auto& [tensor, name] : {std::pair{&masks, "masks"}, std::pair{&boxes, "boxes"}})
    SEGDET_CHECK(is_floating(tensor->scalar_type()), "segdet::paste_masks: ", name,
                 " must be floating point, is ",
                 torch::headeronly::toString(tensor->scalar_type()));
  SEGDET_CHECK(height >= 0 && width >= 0,
               "segdet::paste_masks: image_shape must not be negative, is (", height, ", ", width,
               ")");
}

// float64 where either is.
inline ScalarType common_type(const Tensor& masks, const Tensor& boxes) {
  const ScalarType a = compute_type(masks.scalar_type()), b = compute_type(boxes.scalar_type());
  return a == ScalarType::Double ? a : b;
}

}  // namespace segdet::paste_masks
