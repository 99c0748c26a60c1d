// Fast NMS on CUDA: one block of threads for each class, a thread for each of its boxes.
#include <tuple>

#include "../cuda.cuh"
#include "fast_nms.h"

namespace segdet::nms {
namespace {

// What is written for the k best boxes of each class: candidate (of_class, rank) at of_class * k +
// rank.
template <class T>
struct FastCandidates {
  int64_t *box, *of_class;
  T* score;
  bool* stays;
};

// order (K, n): boxes of each class from the best down; the first k of them are looked at.
template <class T>
__global__ void fast_nms_kernel(const T* boxes, const T* scores, const int64_t* order, int64_t n,
                                int64_t k, T iou_threshold, FastCandidates<T> out) {
  const int64_t of_class = blockIdx.x;
  const int64_t* best = order + of_class * n;
  for (int64_t rank = threadIdx.x; rank < k; rank += blockDim.x) {
    const Box<T> box = make_box(boxes + 4 * best[rank]);
    bool stays = true;
    for (int64_t better = 0; better < rank && stays; ++better)
      stays = !overlap(make_box(boxes + 4 * best[better]), box, iou_threshold);
    const int64_t to = of_class * k + rank;
    out.box[to] = best[rank];
    out.of_class[to] = of_class;
    out.score[to] = scores[of_class * n + best[rank]];
    out.stays[to] = stays;
  }
}

// boxes and scores contiguous, of type T.
template <class T>
std::tuple<Tensor, Tensor> fast_nms_of_type(const Tensor& boxes, const Tensor& scores,
                                            double iou_threshold, int64_t k,
                                            int64_t max_detections) {
  const int64_t classes = scores.size(0), n = scores.size(1);
  const Tensor order = argsort(scores, /*descending=*/true, /*dim=*/1);
  Tensor box = torch::stable::new_empty(order, {classes * k});
  Tensor of_class = torch::stable::new_empty(order, {classes * k});
  Tensor score = torch::stable::new_empty(scores, {classes * k});
  Tensor stays = torch::stable::new_empty(order, {classes * k}, ScalarType::Bool);
  const FastCandidates<T> candidates = {
      box.mutable_data_ptr<int64_t>(), of_class.mutable_data_ptr<int64_t>(),
      score.mutable_data_ptr<T>(), stays.mutable_data_ptr<bool>()};
  SEGDET_LAUNCH((fast_nms_kernel<T>), static_cast<unsigned int>(classes), kThreads,
                current_stream(boxes))
  (boxes.const_data_ptr<T>(), scores.const_data_ptr<T>(), order.const_data_ptr<int64_t>(), n, k,
   threshold_as<T>(iou_threshold), candidates);
  check_launch("fast_nms");
  const Tensor by_score = argsort(score, /*descending=*/true);
  Tensor found = masked_select(by_score, index_select(stays, by_score));
  if (found.size(0) > max_detections) found = torch::stable::narrow(found, 0, 0, max_detections);
  return {index_select(box, found), index_select(of_class, found)};
}

}  // namespace

std::tuple<Tensor, Tensor> fast_nms_cuda(const Tensor& boxes, const Tensor& scores,
                                         double iou_threshold, int64_t top_k,
                                         int64_t max_detections) {
  check_fast_nms(boxes, scores, top_k, max_detections);
  check_same_device(boxes, scores, "fast_nms");
  const torch::stable::accelerator::DeviceGuard guard(boxes.get_device_index());
  const int64_t k = std::min(top_k, scores.size(1));
  if (scores.size(0) * k == 0) {
    const Tensor none = torch::stable::new_empty(boxes, {0}, ScalarType::Long);
    return {none, torch::stable::clone(none)};
  }
  const ScalarType type = common_type(boxes, scores);
  const auto run = type == ScalarType::Double ? fast_nms_of_type<double> : fast_nms_of_type<float>;
  return run(as_contiguous(boxes, type), as_contiguous(scores, type), iou_threshold, k,
             max_detections);
}

}  // namespace segdet::nms

SEGDET_CUDA_IMPL(m) { m.impl("fast_nms", TORCH_BOX(&segdet::nms::fast_nms_cuda)); }
