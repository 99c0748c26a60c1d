// The rule and the checks of soft NMS, for CPU and CUDA.
#pragma once

#include "../nms/nms.h"

namespace segdet::nms {

template <class T>
struct SoftRule {
  bool gaussian;
  T iou_threshold, sigma;

  // What is left of the score of a box at this IoU with a better one.
  SEGDET_HOST_DEVICE T remaining(T iou) const {
    if (gaussian) return iou > T(0) ? std::exp(-iou * iou / sigma) : T(1);
    return iou > iou_threshold ? 1 - iou : T(1);
  }
};

template <class T>
SoftRule<T> soft_rule(double iou_threshold, bool gaussian, double sigma) {
  return {gaussian, threshold_as<T>(iou_threshold), T(sigma)};
}

inline void check_soft_nms(const Tensor& boxes, const Tensor& scores,
                           const std::optional<Tensor>& idxs, bool gaussian, double sigma) {
  check_boxes(boxes, scores, "soft_nms");
  SEGDET_CHECK(is_floating(scores.scalar_type()), "segdet::soft_nms: scores must be floating ",
               "point, is ", torch::headeronly::toString(scores.scalar_type()));
  if (idxs) check_classes(boxes, *idxs, "soft_nms");
  SEGDET_CHECK(!gaussian || sigma > 0, "segdet::soft_nms: sigma must be > 0, is ", sigma);
}

}  // namespace segdet::nms
