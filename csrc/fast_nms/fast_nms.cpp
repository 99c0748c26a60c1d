// Fast NMS on the CPU: the best boxes of each class, of which any better one drops what overlaps
// it, dropped or not. Threads share the classes.
#include "fast_nms.h"

#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

#include "../nms/greedy.h"

namespace segdet::nms {
namespace {

struct Found {
  int64_t box, of_class;
};

// As torch sorts: NaN is better than any number, of equal scores the one that comes first.
template <class T>
bool better(T a, int64_t place_a, T b, int64_t place_b) {
  if (a > b || (std::isnan(a) && !std::isnan(b))) return true;
  if (b > a || (std::isnan(b) && !std::isnan(a))) return false;
  return place_a < place_b;
}

// The boxes of one class that stay, best first. every: the numbers of all boxes; best: as many as
// top_k lets in.
template <class T>
void class_by_itself(const T* xyxy, const T* scores, int64_t of_class,
                     const std::vector<int64_t>& every, std::vector<int64_t>& best,
                     Rivals<Box<T>>& rivals, std::vector<Found>& found) {
  std::partial_sort_copy(every.begin(), every.end(), best.begin(), best.end(),
                         [&](int64_t i, int64_t j) { return better(scores[i], i, scores[j], j); });
  rivals.clear();
  for (const int64_t i : best) {
    const Box<T> box = make_box(xyxy + 4 * i);
    if (!rivals.overlap(box)) found.push_back({i, of_class});
    rivals.add(box);
  }
}

template <class T>
std::vector<Found> fast_nms(const T* xyxy, const T* scores, int64_t classes, int64_t n,
                            double iou_threshold, int64_t top_k, int64_t max_detections) {
  const int64_t candidates = std::min(top_k, n);
  std::vector<int64_t> every(n);
  std::iota(every.begin(), every.end(), 0);
  std::vector<std::vector<Found>> of_class(classes);
  torch::stable::parallel_for(0, classes, 8, [&](int64_t begin, int64_t end) {
    std::vector<int64_t> best(candidates);
    Rivals<Box<T>> rivals(candidates, iou_threshold);
    for (int64_t c = begin; c < end; ++c)
      class_by_itself(xyxy, scores + c * n, c, every, best, rivals, of_class[c]);
  });
  std::vector<Found> found;
  for (const auto& part : of_class) found.insert(found.end(), part.begin(), part.end());
  every.resize(found.size());
  std::iota(every.begin(), every.end(), 0);
  std::vector<int64_t> best(std::min(max_detections, int64_t(found.size())));
  const auto score = [&](int64_t k) { return scores[found[k].of_class * n + found[k].box]; };
  std::partial_sort_copy(every.begin(), every.end(), best.begin(), best.end(),
                         [&](int64_t i, int64_t j) { return better(score(i), i, score(j), j); });
  std::vector<Found> out;
  for (const int64_t k : best) out.push_back(found[k]);
  return out;
}

}  // namespace

// boxes (N, 4) XYXY, scores (K, N) -> box (D,) and class (D,) int64, best first.
std::tuple<Tensor, Tensor> fast_nms_cpu(const Tensor& boxes, const Tensor& scores,
                                        double iou_threshold, int64_t top_k,
                                        int64_t max_detections) {
  check_fast_nms(boxes, scores, top_k, max_detections);
  const ScalarType type = common_type(boxes, scores);
  const Tensor corners = as_contiguous(boxes, type), table = as_contiguous(scores, type);
  const int64_t classes = scores.size(0), n = boxes.size(0);
  const auto found =
      type == ScalarType::Double
          ? fast_nms(corners.const_data_ptr<double>(), table.const_data_ptr<double>(), classes, n,
                     iou_threshold, top_k, max_detections)
          : fast_nms(corners.const_data_ptr<float>(), table.const_data_ptr<float>(), classes, n,
                     iou_threshold, top_k, max_detections);
  Tensor box = torch::stable::new_empty(boxes, {int64_t(found.size())}, ScalarType::Long);
  Tensor of_class = torch::stable::new_empty(box, {int64_t(found.size())});
  for (std::size_t k = 0; k < found.size(); ++k) {
    box.mutable_data_ptr<int64_t>()[k] = found[k].box;
    of_class.mutable_data_ptr<int64_t>()[k] = found[k].of_class;
  }
  return {box, of_class};
}

}  // namespace segdet::nms

STABLE_TORCH_LIBRARY_FRAGMENT(segdet, m) {
  m.def(
      "fast_nms(Tensor boxes, Tensor scores, float iou_threshold, int top_k, int max_detections) "
      "-> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(segdet, CPU, m) {
  m.impl("fast_nms", TORCH_BOX(&segdet::nms::fast_nms_cpu));
}
