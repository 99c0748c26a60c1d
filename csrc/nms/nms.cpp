// Greedy non-maximum suppression on the CPU, over all boxes or class by class; greedy.h says how.
#include "nms.h"

#include "greedy.h"

namespace segdet::nms {
namespace {

template <class T>
Tensor greedy_upright(const Tensor& boxes, const Order& order, double iou_threshold) {
  const Tensor corners = as_contiguous(boxes, compute_type(boxes.scalar_type()));
  const T* xyxy = corners.const_data_ptr<T>();
  return greedy(order, [&](int64_t i) { return make_box(xyxy + 4 * i); }, iou_threshold);
}

Tensor upright_nms(const Tensor& boxes, const Order& order, double iou_threshold) {
  return boxes.scalar_type() == ScalarType::Double
             ? greedy_upright<double>(boxes, order, iou_threshold)
             : greedy_upright<float>(boxes, order, iou_threshold);
}

}  // namespace

// boxes (N, 4) XYXY, scores (N,) -> (K,) int64: the boxes that stay, best first.
Tensor nms_cpu(const Tensor& boxes, const Tensor& scores, double iou_threshold) {
  check_boxes(boxes, scores, "nms");
  return upright_nms(boxes, sort_boxes(scores, nullptr), iou_threshold);
}

// idxs (N,) whole numbers: boxes of different classes do not suppress each other.
Tensor batched_nms_cpu(const Tensor& boxes, const Tensor& scores, const Tensor& idxs,
                       double iou_threshold) {
  check_boxes(boxes, scores, "batched_nms");
  check_classes(boxes, idxs, "batched_nms");
  const Tensor classes = as_contiguous(idxs, ScalarType::Long);
  const Order order = sort_boxes(scores, classes.const_data_ptr<int64_t>());
  return upright_nms(boxes, order, iou_threshold);
}

}  // namespace segdet::nms

STABLE_TORCH_LIBRARY_FRAGMENT(segdet, m) {
  m.def("nms(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor");
  m.def("batched_nms(Tensor boxes, Tensor scores, Tensor idxs, float iou_threshold) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(segdet, CPU, m) {
  m.impl("nms", TORCH_BOX(&segdet::nms::nms_cpu));
  m.impl("batched_nms", TORCH_BOX(&segdet::nms::batched_nms_cpu));
}
