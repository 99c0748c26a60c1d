// Greedy non-maximum suppression on CUDA; greedy.cuh says how.
#include "greedy.cuh"

namespace segdet::nms {
Tensor nms_cuda(const Tensor& boxes, const Tensor& scores, double iou_threshold) {
  check_boxes(boxes, scores, "nms");
  check_same_device(boxes, scores, "nms");
  return greedy_cuda<UprightMaker>(boxes, scores, nullptr, iou_threshold, "nms");
}

Tensor batched_nms_cuda(const Tensor& boxes, const Tensor& scores, const Tensor& idxs,
                        double iou_threshold) {
  check_boxes(boxes, scores, "batched_nms");
  check_classes(boxes, idxs, "batched_nms");
  check_same_device(boxes, scores, "batched_nms");
  check_same_device(boxes, idxs, "batched_nms");
  return greedy_cuda<UprightMaker>(boxes, scores, &idxs, iou_threshold, "batched_nms");
}

}  // namespace segdet::nms

SEGDET_CUDA_IMPL(m) {
  m.impl("nms", TORCH_BOX(&segdet::nms::nms_cuda));
  m.impl("batched_nms", TORCH_BOX(&segdet::nms::batched_nms_cuda));
}
