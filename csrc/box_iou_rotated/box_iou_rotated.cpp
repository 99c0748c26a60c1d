// Intersection over union of every pair of rotated boxes, on the CPU.
//
// A vectorised loop over the upright boxes around them finds the pairs that can meet; only for
// those is one polygon cut by the other.
#include "box_iou_rotated.h"

#include <algorithm>
#include <vector>

#include "../nms/columns.h"

namespace segdet::nms {
namespace {

template <class T>
std::vector<RotatedBox<T>> rotated_boxes(const Tensor& boxes) {
  const T* xywha = boxes.const_data_ptr<T>();
  std::vector<RotatedBox<T>> out(boxes.size(0));
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = make_rotated_box(xywha + 5 * i);
  return out;
}

template <class T>
void fill_pairs(const Tensor& boxes1, const Tensor& boxes2, Tensor& out) {
  const auto a = rotated_boxes<T>(boxes1), b = rotated_boxes<T>(boxes2);
  const int64_t m = int64_t(b.size());
  Columns<double> around_b(m);
  for (int64_t j = 0; j < m; ++j) around_b.set(j, bounds(b[j]));
  T* ious = out.mutable_data_ptr<T>();
  const int64_t grain = std::max<int64_t>(1, 4096 / std::max<int64_t>(1, m));
  torch::stable::parallel_for(0, int64_t(a.size()), grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Box<double> around_a = bounds(a[i]);
      T* row = ious + i * m;
      std::fill(row, row + m, T(0));
      for (int64_t k = next_likely(around_b, 0, m, around_a, 0); k < m;
           k = next_likely(around_b, k + kLanes, m, around_a, 0))
        for (int64_t j = k; j < std::min(k + kLanes, m); ++j) row[j] = iou(a[i], b[j]);
    }
  });
}

}  // namespace

// boxes1 (N, 5), boxes2 (M, 5): centre, size, degrees. Returns (N, M) of their type, in [0, 1].
Tensor box_iou_rotated_cpu(const Tensor& boxes1, const Tensor& boxes2) {
  check_rotated_pair(boxes1, boxes2);
  const ScalarType type = compute_type(boxes1.scalar_type());
  const Tensor a = as_contiguous(boxes1, type), b = as_contiguous(boxes2, type);
  Tensor out = torch::stable::new_empty(a, {a.size(0), b.size(0)});
  if (type == ScalarType::Double)
    fill_pairs<double>(a, b, out);
  else
    fill_pairs<float>(a, b, out);
  return as_contiguous(out, boxes1.scalar_type());
}

}  // namespace segdet::nms

STABLE_TORCH_LIBRARY_FRAGMENT(segdet, m) {
  m.def("box_iou_rotated(Tensor boxes1, Tensor boxes2) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(segdet, CPU, m) {
  m.impl("box_iou_rotated", TORCH_BOX(&segdet::nms::box_iou_rotated_cpu));
}
