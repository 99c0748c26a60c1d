// Intersection over union and argument checks of NMS, for CPU and CUDA.
#pragma once

#include "../stable.h"

namespace segdet {

template <class T>
struct Box {
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

// Strictly above: a pair exactly at the threshold stays, and so does 0 / 0.
template <class T>
SEGDET_HOST_DEVICE bool overlap(const Box<T>& a, const Box<T>& b, double iou_threshold) {
  const T inter = intersection(a, b);
  return inter / (a.area + b.area - inter) > iou_threshold;
}

inline void check_boxes(const Tensor& boxes, const Tensor& scores, const char* op) {
  SEGDET_CHECK(boxes.dim() == 2, "segdet::", op, ": boxes must be (N, 4), has ", boxes.dim(),
               " dimensions");
  SEGDET_CHECK(boxes.size(1) == 4, "segdet::", op, ": boxes must be (N, 4), has last size ",
               boxes.size(1));
  SEGDET_CHECK(is_floating(boxes.scalar_type()), "segdet::", op,
               ": boxes must be floating point, is ",
               torch::headeronly::toString(boxes.scalar_type()));
  SEGDET_CHECK(scores.dim() == 1 && scores.size(0) == boxes.size(0), "segdet::", op,
               ": scores must be (N,) with N = ", boxes.size(0), ", has ", scores.dim(),
               " dimensions and ", scores.numel(), " elements");
}

inline void check_classes(const Tensor& boxes, const Tensor& idxs) {
  SEGDET_CHECK(idxs.dim() == 1 && idxs.size(0) == boxes.size(0),
               "segdet::batched_nms: idxs must be (N,) with N = ", boxes.size(0), ", has ",
               idxs.dim(), " dimensions and ", idxs.numel(), " elements");
  SEGDET_CHECK(!is_floating(idxs.scalar_type()),
               "segdet::batched_nms: idxs must be whole numbers, is ",
               torch::headeronly::toString(idxs.scalar_type()));
}

}  // namespace segdet
