// Greedy non-maximum suppression on the CPU, over all boxes or class by class.
//
// Boxes are sorted by class, then by score, and each class is worked through from its best box
// down: a box stays unless it overlaps one that stayed before it. The ones that stayed lie next to
// each other, so the comparison is a vectorised loop without divisions; only where it finds a
// likely overlap is the exact quotient taken. One thread does it: on a busy machine to wait for a
// second one takes longer than the work.
#include "nms.h"

#include <algorithm>
#include <vector>

#include "../simd.h"

namespace segdet {
namespace {

// Boxes by column, so that a loop over boxes reads vectors.
template <class T>
struct Columns {
  std::vector<T> x1, y1, x2, y2, area;

  explicit Columns(int64_t n) : x1(n), y1(n), x2(n), y2(n), area(n) {}
  Box<T> at(int64_t i) const { return {x1[i], y1[i], x2[i], y2[i], area[i]}; }
  void set(int64_t i, const Box<T>& box) {
    x1[i] = box.x1;
    y1[i] = box.y1;
    x2[i] = box.x2;
    y2[i] = box.y2;
    area[i] = box.area;
  }
};

constexpr int64_t kLanes = 16;

// Whether `box` overlaps one of boxes [begin, end).
template <class T>
SEGDET_INLINE bool overlaps_any(const Columns<T>& boxes, int64_t begin, int64_t end,
                                const Box<T>& box, double iou_threshold) {
  const T *x1 = boxes.x1.data(), *y1 = boxes.y1.data(), *x2 = boxes.x2.data(),
          *y2 = boxes.y2.data(), *area = boxes.area.data();
  // A little low, so that no pair above the threshold is missed for rounding. A negative threshold
  // suppresses boxes that do not meet, too: there every pair is worth the exact look.
  const T enough = T(iou_threshold * (1 - 1e-5));
  const bool screen = iou_threshold >= 0;
  for (int64_t k = begin; k < end; k += kLanes) {
    const int64_t stop = std::min(k + kLanes, end);
    if (screen && stop - k == kLanes) {
      int likely = 0;
      for (int64_t i = k; i < k + kLanes; ++i) {
        const T left = x1[i] > box.x1 ? x1[i] : box.x1, right = x2[i] < box.x2 ? x2[i] : box.x2;
        const T top = y1[i] > box.y1 ? y1[i] : box.y1, bottom = y2[i] < box.y2 ? y2[i] : box.y2;
        const T width = right - left, height = bottom - top;
        const T inter = (width > T(0) ? width : T(0)) * (height > T(0) ? height : T(0));
        likely |= inter > enough * (area[i] + box.area - inter);
      }
      if (!likely) continue;
    }
    for (int64_t i = k; i < stop; ++i)
      if (overlap(boxes.at(i), box, iou_threshold)) return true;
  }
  return false;
}

#define SEGDET_OVERLAP_KERNEL(T)                                                        \
  SEGDET_SIMD bool overlaps_one_of(const Columns<T>& boxes, int64_t begin, int64_t end, \
                                   const Box<T>& box, double iou_threshold) {           \
    return overlaps_any(boxes, begin, end, box, iou_threshold);                         \
  }
SEGDET_OVERLAP_KERNEL(float)
SEGDET_OVERLAP_KERNEL(double)
#undef SEGDET_OVERLAP_KERNEL

// Boxes [begin, end) are one class, best first: sets stays[i] for each. The ones that stay move to
// the front of that range.
template <class T>
void suppress(Columns<T>& boxes, int64_t begin, int64_t end, double iou_threshold, char* stays) {
  int64_t kept_end = begin;
  for (int64_t i = begin; i < end; ++i) {
    const Box<T> box = boxes.at(i);
    stays[i] = !overlaps_one_of(boxes, begin, kept_end, box, iou_threshold);
    if (stays[i]) boxes.set(kept_end++, box);
  }
}

// by_score (N,): boxes from the best down. place[k]: rank by score of the k-th box in the order of
// class, then score. class_begin: where in that order each class begins, and N.
template <class T>
std::vector<int64_t> kept_boxes(const Tensor& boxes, const int64_t* by_score,
                                const std::vector<int64_t>& place,
                                const std::vector<int64_t>& class_begin, double iou_threshold) {
  const int64_t n = int64_t(place.size());
  const T* xyxy = boxes.const_data_ptr<T>();
  Columns<T> columns(n);
  for (int64_t k = 0; k < n; ++k) columns.set(k, make_box(xyxy + 4 * by_score[place[k]]));
  std::vector<char> stays(n);
  for (std::size_t c = 0; c + 1 < class_begin.size(); ++c)
    suppress(columns, class_begin[c], class_begin[c + 1], iou_threshold, stays.data());
  std::vector<char> stays_by_rank(n);
  for (int64_t k = 0; k < n; ++k) stays_by_rank[place[k]] = stays[k];
  std::vector<int64_t> kept;
  for (int64_t rank = 0; rank < n; ++rank)
    if (stays_by_rank[rank]) kept.push_back(by_score[rank]);
  return kept;
}

// classes: int64 of each box, or null: all boxes are one class.
Tensor nms(const Tensor& boxes, const Tensor& scores, const int64_t* classes,
           double iou_threshold) {
  const int64_t n = boxes.size(0);
  const Tensor order = argsort(scores, /*descending=*/true);
  const int64_t* by_score = order.const_data_ptr<int64_t>();
  std::vector<int64_t> place(n), class_begin{0};
  for (int64_t k = 0; k < n; ++k) place[k] = k;
  if (classes != nullptr) {
    std::vector<std::pair<int64_t, int64_t>> class_and_rank(n);
    for (int64_t k = 0; k < n; ++k) class_and_rank[k] = {classes[by_score[k]], k};
    std::sort(class_and_rank.begin(), class_and_rank.end());
    for (int64_t k = 0; k < n; ++k) {
      place[k] = class_and_rank[k].second;
      if (k > 0 && class_and_rank[k].first != class_and_rank[k - 1].first) class_begin.push_back(k);
    }
  }
  class_begin.push_back(n);
  const ScalarType type = compute_type(boxes.scalar_type());
  const Tensor corners = as_contiguous(boxes, type);
  const auto kept = type == ScalarType::Double
                        ? kept_boxes<double>(corners, by_score, place, class_begin, iou_threshold)
                        : kept_boxes<float>(corners, by_score, place, class_begin, iou_threshold);
  Tensor out = torch::stable::new_empty(order, {int64_t(kept.size())});
  std::copy(kept.begin(), kept.end(), out.mutable_data_ptr<int64_t>());
  return out;
}

}  // namespace

// boxes (N, 4) XYXY, scores (N,) -> (K,) int64: the boxes that stay, best first.
Tensor nms_cpu(const Tensor& boxes, const Tensor& scores, double iou_threshold) {
  check_boxes(boxes, scores, "nms");
  return nms(boxes, scores, nullptr, iou_threshold);
}

// idxs (N,) whole numbers: boxes of different classes do not suppress each other.
Tensor batched_nms_cpu(const Tensor& boxes, const Tensor& scores, const Tensor& idxs,
                       double iou_threshold) {
  check_boxes(boxes, scores, "batched_nms");
  check_classes(boxes, idxs);
  const Tensor classes = as_contiguous(idxs, ScalarType::Long);
  return nms(boxes, scores, classes.const_data_ptr<int64_t>(), iou_threshold);
}

}  // namespace segdet

STABLE_TORCH_LIBRARY_FRAGMENT(segdet, m) {
  m.def("nms(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor");
  m.def("batched_nms(Tensor boxes, Tensor scores, Tensor idxs, float iou_threshold) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(segdet, CPU, m) {
  m.impl("nms", TORCH_BOX(&segdet::nms_cpu));
  m.impl("batched_nms", TORCH_BOX(&segdet::batched_nms_cpu));
}
