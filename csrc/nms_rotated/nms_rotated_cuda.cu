// Greedy non-maximum suppression of rotated boxes on CUDA; ../nms/greedy.cuh says how.
#include "../box_iou_rotated/box_iou_rotated.h"
#include "../nms/greedy.cuh"

namespace segdet::nms {
namespace {

struct RotatedMaker {
  template <class T>
  using Shape = RotatedBox<T>;
  static constexpr int kNumbers = 5;
  template <class T>
  __device__ static RotatedBox<T> make(const T* xywha) {
    return make_rotated_box(xywha);
  }
};

}  // namespace

Tensor nms_rotated_cuda(const Tensor& boxes, const Tensor& scores, double iou_threshold) {
  check_boxes(boxes, scores, "nms_rotated", 5);
  check_same_device(boxes, scores, "nms_rotated");
  return greedy_cuda<RotatedMaker>(boxes, scores, nullptr, iou_threshold, "nms_rotated");
}

Tensor batched_nms_rotated_cuda(const Tensor& boxes, const Tensor& scores, const Tensor& idxs,
                                double iou_threshold) {
  check_boxes(boxes, scores, "batched_nms_rotated", 5);
  check_classes(boxes, idxs, "batched_nms_rotated");
  check_same_device(boxes, scores, "batched_nms_rotated");
  check_same_device(boxes, idxs, "batched_nms_rotated");
  return greedy_cuda<RotatedMaker>(boxes, scores, &idxs, iou_threshold, "batched_nms_rotated");
}

}  // namespace segdet::nms

SEGDET_CUDA_IMPL(m) {
  m.impl("nms_rotated", TORCH_BOX(&segdet::nms::nms_rotated_cuda));
  m.impl("batched_nms_rotated", TORCH_BOX(&segdet::nms::batched_nms_rotated_cuda));
}
