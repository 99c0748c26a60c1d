// The checks of Fast NMS, for CPU and CUDA.
#pragma once

#include "../nms/nms.h"

namespace segdet::nms {

inline void check_fast_nms(const Tensor& boxes, const Tensor& scores, int64_t top_k,
                           int64_t max_detections) {
  SEGDET_CHECK(boxes.dim() == 2 && boxes.size(1) == 4, "segdet::fast_nms: boxes must be (N, 4), ",
               "has ", boxes.dim(), " dimensions and ", boxes.numel(), " elements");
  SEGDET_CHECK(scores.dim() == 2 && scores.size(1) == boxes.size(0),
               "segdet::fast_nms: scores must be (K, N) with N = ", boxes.size(0), ", has ",
               scores.dim(), " dimensions and ", scores.numel(), " elements");
  for (const Tensor* tensor : {&boxes, &scores})
    SEGDET_CHECK(is_floating(tensor->scalar_type()),
                 "segdet::fast_nms: ", tensor == &boxes ? "boxes" : "scores",
                 " must be floating point, is ",
                 torch::headeronly::toString(tensor->scalar_type()));
  SEGDET_CHECK(top_k >= 0 && max_detections >= 0, "segdet::fast_nms: top_k and max_detections ",
               "must be >= 0, are ", top_k, " and ", max_detections);
}

}  // namespace segdet::nms
