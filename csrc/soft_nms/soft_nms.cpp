// Soft non-maximum suppression on the CPU.
//
// A round takes the box with the best score that is left and lowers the scores of those that
// overlap it. Boxes are looked at in blocks: the best score of each is known, and a vectorised loop
// finds the blocks that hold an overlap. What was taken or dropped loses its extent there.
#include "soft_nms.h"

#include <algorithm>
#include <tuple>
#include <vector>

#include "../nms/columns.h"
#include "../nms/groups.h"

namespace segdet::nms {
namespace {

template <class T>
class SoftBoxes {
 public:
  // Boxes members[0..n), of one class; those without a score above min_score are left out.
  SoftBoxes(const T* xyxy, const T* scores, const int64_t* members, int64_t n, T min_score)
      : columns_(n), scores_(n + kLanes, kGone), best_(n / kLanes + 1, kGone), min_(min_score) {
    for (int64_t i = 0; i < n; ++i) {
      if (!(scores[members[i]] > min_score)) continue;
      columns_.set(i, make_box(xyxy + 4 * members[i]));
      scores_[i] = scores[members[i]];
    }
    for (std::size_t block = 0; block < best_.size(); ++block) find_best(block);
  }

  // The first of the boxes with the best score, taken away; -1 when none is left.
  int64_t take(T& score, Box<T>& box) {
    const auto block = std::max_element(best_.begin(), best_.end()) - best_.begin();
    score = best_[block];
    if (score == kGone) return -1;
    int64_t i = block * kLanes;
    while (scores_[i] != score) ++i;
    box = columns_.at(i);
    remove(i);
    find_best(block);
    return i;
  }

  void decay(const Box<T>& box, const SoftRule<T>& rule, T enough) {
    const int64_t end = int64_t(scores_.size()) - kLanes;
    for (int64_t k = next_likely(columns_, 0, end, box, enough); k < end;
         k = next_likely(columns_, k + kLanes, end, box, enough)) {
      for (int64_t i = k; i < k + kLanes; ++i) {
        if (scores_[i] == kGone) continue;
        scores_[i] *= rule.remaining(iou(columns_.at(i), box));
        if (!(scores_[i] > min_)) remove(i);
      }
      find_best(k / kLanes);
    }
  }

 private:
  static constexpr T kGone = -std::numeric_limits<T>::infinity();

  void remove(int64_t i) {
    columns_.set(i, {});
    scores_[i] = kGone;
  }
  void find_best(int64_t block) {
    const auto begin = scores_.begin() + block * kLanes;
    best_[block] = *std::max_element(begin, begin + kLanes);
  }

  Columns<T> columns_;
  std::vector<T> scores_, best_;  // of each box, of each block
  T min_;
};

template <class T>
std::tuple<Tensor, Tensor> soft_nms(const Tensor& boxes, const Tensor& scores, const Groups& groups,
                                    const SoftRule<T>& rule, double min_score) {
  const ScalarType type = common_type(boxes, scores);
  const Tensor corners = as_contiguous(boxes, type), start = as_contiguous(scores, type);
  const T enough = rule.gaussian ? T(0) : std::max(T(0), T(rule.iou_threshold * (1 - 1e-5)));
  std::vector<std::pair<T, int64_t>> kept;
  for (int64_t group = 0; group < groups.count(); ++group) {
    const int64_t* members = groups.members.data() + groups.begin[group];
    SoftBoxes<T> left(corners.const_data_ptr<T>(), start.const_data_ptr<T>(), members,
                      groups.size(group), threshold_as<T>(min_score));
    T score;
    Box<T> box;
    for (int64_t i; (i = left.take(score, box)) >= 0;) {
      kept.emplace_back(score, members[i]);
      left.decay(box, rule, enough);
    }
  }
  std::sort(kept.begin(), kept.end(), [](const auto& a, const auto& b) {
    return a.first != b.first ? a.first > b.first : a.second < b.second;
  });
  Tensor index = torch::stable::new_empty(start, {int64_t(kept.size())}, ScalarType::Long);
  Tensor lowered = torch::stable::new_empty(start, {int64_t(kept.size())});
  for (std::size_t k = 0; k < kept.size(); ++k) {
    lowered.mutable_data_ptr<T>()[k] = kept[k].first;
    index.mutable_data_ptr<int64_t>()[k] = kept[k].second;
  }
  return {index, as_contiguous(lowered, scores.scalar_type())};
}

}  // namespace

// boxes (N, 4) XYXY, scores (N,), idxs (N,) classes or none -> the boxes that are left (K,) int64
// and their lowered scores (K,), best first.
std::tuple<Tensor, Tensor> soft_nms_cpu(const Tensor& boxes, const Tensor& scores,
                                        std::optional<Tensor> idxs, double iou_threshold,
                                        bool gaussian, double sigma, double min_score) {
  check_soft_nms(boxes, scores, idxs, gaussian, sigma);
  Groups groups = one_group(boxes.size(0));
  if (idxs) {
    const Tensor classes = as_contiguous(*idxs, ScalarType::Long);
    const int64_t* class_of = classes.const_data_ptr<int64_t>();
    groups = group_by_class(boxes.size(0), [&](int64_t i) { return class_of[i]; });
  }
  if (common_type(boxes, scores) == ScalarType::Double)
    return soft_nms(boxes, scores, groups, soft_rule<double>(iou_threshold, gaussian, sigma),
                    min_score);
  return soft_nms(boxes, scores, groups, soft_rule<float>(iou_threshold, gaussian, sigma),
                  min_score);
}

}  // namespace segdet::nms

STABLE_TORCH_LIBRARY_FRAGMENT(segdet, m) {
  m.def(
      "soft_nms(Tensor boxes, Tensor scores, Tensor? idxs, float iou_threshold, bool gaussian, "
      "float sigma, float min_score) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(segdet, CPU, m) {
  m.impl("soft_nms", TORCH_BOX(&segdet::nms::soft_nms_cpu));
}
