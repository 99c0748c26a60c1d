// Greedy suppression on the CPU, for boxes of any shape.
//
// Boxes are sorted by class, then by score, and each class is worked through from its best box
// down: a box stays unless it overlaps one that stayed before it. The comparison with those is a
// vectorised loop without divisions; only where it finds a likely overlap is the exact quotient
// taken. One thread does it: on a busy machine to wait for a second one takes longer than the work.
#pragma once

#include <algorithm>
#include <vector>

#include "best_first.h"
#include "columns.h"
#include "groups.h"

namespace segdet::nms {

// by_score (N,) int64: boxes from the best down. by_class: their places there, class by class.
struct Order {
  Tensor by_score;
  Groups by_class;
};

// classes: int64 of each box, or null: all boxes are one class.
inline Order sort_boxes(const Tensor& scores, const int64_t* classes) {
  const Tensor by_score = best_first(scores);
  const int64_t n = scores.size(0), *box = by_score.const_data_ptr<int64_t>();
  if (classes == nullptr) return {by_score, one_group(n)};
  return {by_score, group_by_class(n, [&](int64_t rank) { return classes[box[rank]]; })};
}

// Boxes that drop any later one which overlaps one of them. A Shape has bounds(shape), the upright
// Box around it, and overlap(shape, shape, threshold), the exact judgement.
template <class Shape>
class Rivals {
 public:
  using Upright = std::decay_t<decltype(bounds(std::declval<Shape>()))>;

  // most: boxes that can be added.
  Rivals(int64_t most, double iou_threshold)
      : columns_(most),
        shapes_(most),
        any_may_overlap_(!(iou_threshold >= 0)),  // boxes that do not meet are dropped, too
        enough_(typename Upright::Number(iou_threshold * (1 - 1e-5))),
        threshold_(threshold_as<typename Shape::Number>(iou_threshold)) {}

  bool overlap(const Shape& shape) const {
    const Upright box = bounds(shape);
    for (int64_t k = next(0, box); k < size_; k = next(k + kLanes, box))
      for (int64_t i = k; i < std::min(k + kLanes, size_); ++i)
        if (nms::overlap(shapes_[i], shape, threshold_)) return true;
    return false;
  }
  void add(const Shape& shape) {
    columns_.set(size_, bounds(shape));
    shapes_[size_++] = shape;
  }
  void clear() {
    while (size_ > 0) columns_.set(--size_, {});
  }

 private:
  int64_t next(int64_t begin, const Upright& box) const {
    return any_may_overlap_ ? begin : next_likely(columns_, begin, size_, box, enough_);
  }

  Columns<typename Upright::Number> columns_;  // without extent beyond size_
  std::vector<Shape> shapes_;
  int64_t size_ = 0;
  bool any_may_overlap_;
  typename Upright::Number enough_;
  typename Shape::Number threshold_;
};

// shape_of(i): box i. Returns the indices (K,) int64 of those that stay, best first.
template <class ShapeOf>
Tensor greedy(const Order& order, const ShapeOf& shape_of, double iou_threshold) {
  const auto& [by_score, by_class] = order;
  const int64_t* box = by_score.template const_data_ptr<int64_t>();
  Rivals<decltype(shape_of(0))> kept(by_class.largest(), iou_threshold);
  std::vector<char> stays(by_class.members.size());  // by score
  for (int64_t group = 0; group < by_class.count(); ++group) {
    kept.clear();
    for (int64_t k = by_class.begin[group]; k < by_class.begin[group + 1]; ++k) {
      const int64_t rank = by_class.members[k];
      const auto shape = shape_of(box[rank]);
      if (kept.overlap(shape)) continue;
      kept.add(shape);
      stays[rank] = 1;
    }
  }
  Tensor out =
      torch::stable::new_empty(by_score, {int64_t(std::count(stays.begin(), stays.end(), 1))});
  int64_t* next = out.mutable_data_ptr<int64_t>();
  for (std::size_t rank = 0; rank < stays.size(); ++rank)
    if (stays[rank]) *next++ = box[rank];
  return out;
}

}  // namespace segdet::nms
