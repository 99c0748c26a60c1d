// Intersection over union and argument checks that the NMS ops share, for CPU and CUDA.
#pragma once

#include <cmath>
#include <limits>

#include "../stable.h"

namespace segdet::nms {

template <class T>
struct Box {
  using Number = T;
  T x1, y1, x2, y2, area;
};

template <class T>
SEGDET_HOST_DEVICE Box<T> make_box(const T* xyxy) {
  return {xyxy[0], xyxy[1], xyxy[2], xyxy[3], (xyxy[2] - xyxy[0]) * (xyxy[3] - xyxy[1])};
}

template <class T>
SEGDET_HOST_DEVICE T intersection(const Box<T>& a, const Box<T>& b) {
  const T left = a.x1 > b.x1 ? a.x1 : b.x1, right = a.x2 < b.x2 ? a.x2 : b.x2;
  const T top = a.y1 > b.y1 ? a.y1 : b.y1, bottom = a.y2 < b.y2 ? a.y2 : b.y2;
  const T width = right - left, height = bottom - top;
  return (width > T(0) ? width : T(0)) * (height > T(0) ? height : T(0));
}

// The upright box around a shape, with the shape's own area.
template <class T>
SEGDET_HOST_DEVICE const Box<T>& bounds(const Box<T>& box) {
  return box;
}

// NaN for two boxes without area.
template <class T>
SEGDET_HOST_DEVICE T iou(const Box<T>& a, const Box<T>& b) {
  const T inter = intersection(a, b);
  return inter / (a.area + b.area - inter);
}

// Strictly above: a pair exactly at the threshold stays, and so does 0 / 0.
template <class T>
SEGDET_HOST_DEVICE bool overlap(const Box<T>& a, const Box<T>& b, T iou_threshold) {
  return iou(a, b) > iou_threshold;
}

// The largest T that is not above: a T is above it just when it is above the threshold itself.
template <class T>
T threshold_as(double threshold) {
  const T nearest = T(threshold);
  return double(nearest) > threshold ? std::nextafter(nearest, -std::numeric_limits<T>::infinity())
                                     : nearest;
}

// The type in which boxes and scores are computed with together.
inline ScalarType common_type(const Tensor& boxes, const Tensor& scores) {
  const ScalarType type = compute_type(boxes.scalar_type());
  return type == ScalarType::Double ? type : compute_type(scores.scalar_type());
}

// numbers: of a box, 4 or 5.
inline void check_boxes(const Tensor& boxes, const Tensor& scores, const char* op,
                        int64_t numbers = 4) {
  SEGDET_CHECK(boxes.dim() == 2, "segdet::", op, ": boxes must be (N, ", numbers, "), has ",
               boxes.dim(), " dimensions");
  SEGDET_CHECK(boxes.size(1) == numbers, "segdet::", op, ": boxes must be (N, ", numbers,
               "), has last size ", boxes.size(1));
  SEGDET_CHECK(is_floating(boxes.scalar_type()), "segdet::", op,
               ": boxes must be floating point, is ",
               torch::headeronly::toString(boxes.scalar_type()));
  SEGDET_CHECK(scores.dim() == 1 && scores.size(0) == boxes.size(0), "segdet::", op,
               ": scores must be (N,) with N = ", boxes.size(0), ", has ", scores.dim(),
               " dimensions and ", scores.numel(), " elements");
}

inline void check_classes(const Tensor& boxes, const Tensor& idxs, const char* op) {
  SEGDET_CHECK(idxs.dim() == 1 && idxs.size(0) == boxes.size(0), "segdet::", op,
               ": idxs must be (N,) with N = ", boxes.size(0), ", has ", idxs.dim(),
               " dimensions and ", idxs.numel(), " elements");
  SEGDET_CHECK(!is_floating(idxs.scalar_type()), "segdet::", op,
               ": idxs must be whole numbers, is ",
               torch::headeronly::toString(idxs.scalar_type()));
}

}  // namespace segdet::nms
