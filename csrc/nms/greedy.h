// Greedy suppression on the CPU, for boxes of any shape.
//
// Boxes are sorted by class, then by score, and each class is worked through from its best box
// down: a box stays unless it overlaps one that stayed before it. The comparison with those is a
// vectorised loop without divisions; only where it finds a likely overlap is the exact quotient
// taken. One thread does it: on a busy machine to wait for a second one takes longer than the work.
#pragma once

#include <algorithm>
#include <unordered_map>
#include <vector>

#include "columns.h"

namespace segdet::nms {

// Boxes class by class, each class from its best box down.
struct Order {
  Tensor by_score;                   // (N,) int64: boxes from the best down, over all classes
  std::vector<int64_t> rank;         // of the k-th box in this order, its place in by_score
  std::vector<int64_t> class_begin;  // where in this order each class begins, and N
};

// classes: int64 of each box, or null: all boxes are one class.
inline Order sort_boxes(const Tensor& scores, const int64_t* classes) {
  const int64_t n = scores.size(0);
  Order order{argsort(scores, /*descending=*/true), std::vector<int64_t>(n), {0, n}};
  if (classes == nullptr) {
    for (int64_t k = 0; k < n; ++k) order.rank[k] = k;
    return order;
  }
  const int64_t* by_score = order.by_score.const_data_ptr<int64_t>();
  std::unordered_map<int64_t, int64_t> number_of;  // classes in the order of their best boxes
  std::vector<int64_t> number(n), count;
  for (int64_t k = 0; k < n; ++k) {
    number[k] = number_of.try_emplace(classes[by_score[k]], int64_t(count.size())).first->second;
    if (number[k] == int64_t(count.size())) count.push_back(0);
    ++count[number[k]];
  }
  order.class_begin.assign(1, 0);
  for (const int64_t size : count) order.class_begin.push_back(order.class_begin.back() + size);
  std::vector<int64_t> next = order.class_begin;
  for (int64_t k = 0; k < n; ++k) order.rank[next[number[k]]++] = k;
  return order;
}

// The boxes of a class that stayed so far. A Shape has bounds(shape), the upright Box around it,
// and overlap(shape, shape, threshold), the exact judgement.
template <class Shape>
class Kept {
 public:
  using Upright = std::decay_t<decltype(bounds(std::declval<Shape>()))>;

  // most: boxes that can stay.
  Kept(int64_t most, double iou_threshold)
      : columns_(most),
        shapes_(most),
        any_may_overlap_(!(iou_threshold >= 0)),  // boxes that do not meet are dropped, too
        enough_(typename Upright::Number(iou_threshold * (1 - 1e-5))),
        threshold_(threshold_as<typename Shape::Number>(iou_threshold)) {}

  bool overlap_with(const Shape& shape) const {
    const Upright box = bounds(shape);
    for (int64_t k = next(0, box); k < size_; k = next(k + kLanes, box))
      for (int64_t i = k; i < std::min(k + kLanes, size_); ++i)
        if (overlap(shapes_[i], shape, threshold_)) return true;
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
  const int64_t n = int64_t(order.rank.size());
  const int64_t* by_score = order.by_score.const_data_ptr<int64_t>();
  int64_t largest_class = 0;
  for (std::size_t c = 1; c < order.class_begin.size(); ++c)
    largest_class = std::max(largest_class, order.class_begin[c] - order.class_begin[c - 1]);
  Kept<decltype(shape_of(0))> kept(largest_class, iou_threshold);
  std::vector<char> stays(n);  // by rank
  for (std::size_t c = 1; c < order.class_begin.size(); ++c) {
    kept.clear();
    for (int64_t k = order.class_begin[c - 1]; k < order.class_begin[c]; ++k) {
      const auto shape = shape_of(by_score[order.rank[k]]);
      if (kept.overlap_with(shape)) continue;
      kept.add(shape);
      stays[order.rank[k]] = 1;
    }
  }
  Tensor out = torch::stable::new_empty(order.by_score,
                                        {int64_t(std::count(stays.begin(), stays.end(), 1))});
  int64_t* next = out.mutable_data_ptr<int64_t>();
  for (int64_t k = 0; k < n; ++k)
    if (stays[k]) *next++ = by_score[k];
  return out;
}

}  // namespace segdet::nms
