// Greedy non-maximum suppression of rotated boxes on the CPU; ../nms/greedy.h says how.
#include "../box_iou_rotated/box_iou_rotated.h"
#include "../nms/greedy.h"

namespace segdet::nms {
namespace {

template <class T>
Tensor greedy_rotated(const Tensor& boxes, const Order& order, double iou_threshold) {
  const Tensor numbers = as_contiguous(boxes, compute_type(boxes.scalar_type()));
  const T* xywha = numbers.const_data_ptr<T>();
  return greedy(order, [&](int64_t i) { return make_rotated_box(xywha + 5 * i); }, iou_threshold);
}

Tensor rotated_nms(const Tensor& boxes, const Order& order, double iou_threshold) {
  return boxes.scalar_type() == ScalarType::Double
             ? greedy_rotated<double>(boxes, order, iou_threshold)
             : greedy_rotated<float>(boxes, order, iou_threshold);
}

}  // namespace

// boxes (N, 5): centre, size, degrees; scores (N,) -> (K,) int64: the boxes that stay, best first.
Tensor nms_rotated_cpu(const Tensor& boxes, const Tensor& scores, double iou_threshold) {
  check_boxes(boxes, scores, "nms_rotated", 5);
  return rotated_nms(boxes, sort_boxes(scores, nullptr), iou_threshold);
}

// idxs (N,) whole numbers: boxes of different classes do not suppress each other.
Tensor batched_nms_rotated_cpu(const Tensor& boxes, const Tensor& scores, const Tensor& idxs,
                               double iou_threshold) {
  check_boxes(boxes, scores, "batched_nms_rotated", 5);
  check_classes(boxes, idxs, "batched_nms_rotated");
  const Tensor classes = as_contiguous(idxs, ScalarType::Long);
  const Order order = sort_boxes(scores, classes.const_data_ptr<int64_t>());
  return rotated_nms(boxes, order, iou_threshold);
}

}  // namespace segdet::nms

STABLE_TORCH_LIBRARY_FRAGMENT(segdet, m) {
  m.def("nms_rotated(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor");
  m.def(
      "batched_nms_rotated(Tensor boxes, Tensor scores, Tensor idxs, float iou_threshold) -> "
      "Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(segdet, CPU, m) {
  m.impl("nms_rotated", TORCH_BOX(&segdet::nms::nms_rotated_cpu));
  m.impl("batched_nms_rotated", TORCH_BOX(&segdet::nms::batched_nms_rotated_cpu));
}
