// Soft non-maximum suppression on CUDA: one block of threads for each class, round after round. A
// thread has every kRoundThreads-th box of the class to itself; what they meet for is the best box.
#include <tuple>

#include "../nms/greedy.cuh"
#include "soft_nms.h"

namespace segdet::nms {
namespace {

constexpr int kRoundThreads = 512;

template <class T>
struct Best {
  T score;
  int64_t k;  // -1: there is none

  __device__ void take(T other_score, int64_t other) {
    if (other < 0 || (k >= 0 && (other_score < score || (other_score == score && other > k))))
      return;
    score = other_score;
    k = other;
  }
};

// The same for all threads of the block.
template <class T>
__device__ Best<T> best_of_block(Best<T> mine, Best<T>* shared) {
  shared[threadIdx.x] = mine;
  for (int half = kRoundThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (int(threadIdx.x) < half) {
      const Best<T> other = shared[threadIdx.x + half];
      shared[threadIdx.x].take(other.score, other.k);
    }
  }
  __syncthreads();
  const Best<T> best = shared[0];
  __syncthreads();  // before anybody writes the next one
  return best;
}

// boxes: by class, then index; order: their indices. scores and stays: by index; stays begins as
// zeros. One block for each box; those that do not begin a class leave at once.
template <class T>
__global__ void soft_rounds_kernel(const Box<T>* boxes, const int64_t* order, const Range* ranges,
                                   SoftRule<T> rule, T min_score, T* scores, bool* stays) {
  const Range range = ranges[blockIdx.x];
  if (range.begin != blockIdx.x) return;
  __shared__ Best<T> shared[kRoundThreads];
  Best<T> mine = {T(0), -1};
  for (int64_t k = range.begin + threadIdx.x; k < range.end; k += kRoundThreads)
    if (scores[order[k]] > min_score) mine.take(scores[order[k]], k);
  for (;;) {
    const Best<T> best = best_of_block(mine, shared);
    if (best.k < 0) return;
    if ((best.k - range.begin) % kRoundThreads == threadIdx.x) stays[order[best.k]] = true;
    const Box<T> box = boxes[best.k];
    mine = {T(0), -1};
    for (int64_t k = range.begin + threadIdx.x; k < range.end; k += kRoundThreads) {
      const int64_t i = order[k];
      if (stays[i] || !(scores[i] > min_score)) continue;
      scores[i] *= rule.remaining(iou(boxes[k], box));
      if (scores[i] > min_score) mine.take(scores[i], k);
    }
  }
}

template <class T>
Tensor soft_rounds(const Tensor& boxes, const Tensor& order, const int64_t* classes,
                   const SoftRule<T>& rule, double min_score, Tensor& scores) {
  const int64_t n = boxes.size(0);
  const cudaStream_t stream = current_stream(boxes);
  Tensor made = make_shapes<UprightMaker, T>(boxes, order, stream);
  Tensor ranges = class_ranges(order, classes, stream);
  Tensor stays = torch::stable::new_zeros(order, {n}, ScalarType::Bool);
  const auto blocks = static_cast<unsigned int>(classes == nullptr ? 1 : n);
  SEGDET_LAUNCH((soft_rounds_kernel<T>), blocks, kRoundThreads, stream)
  (data_of<Box<T>>(made), order.const_data_ptr<int64_t>(), data_of<Range>(ranges), rule,
   threshold_as<T>(min_score), scores.mutable_data_ptr<T>(), stays.mutable_data_ptr<bool>());
  check_launch("soft_nms");
  return stays;
}

}  // namespace

std::tuple<Tensor, Tensor> soft_nms_cuda(const Tensor& boxes, const Tensor& scores,
                                         std::optional<Tensor> idxs, double iou_threshold,
                                         bool gaussian, double sigma, double min_score) {
  check_soft_nms(boxes, scores, idxs, gaussian, sigma);
  check_same_device(boxes, scores, "soft_nms");
  if (idxs) check_same_device(boxes, *idxs, "soft_nms");
  const torch::stable::accelerator::DeviceGuard guard(boxes.get_device_index());
  const int64_t n = boxes.size(0);
  const ScalarType type = common_type(boxes, scores);
  const Tensor corners = as_contiguous(boxes, type);
  Tensor lowered = torch::stable::clone(as_contiguous(scores, type));
  const Tensor one_class = torch::stable::new_zeros(scores, {n}, ScalarType::Long);
  const Tensor classes = idxs ? as_contiguous(*idxs, ScalarType::Long) : one_class;
  const Tensor order = argsort(classes, /*descending=*/false);
  if (n == 0) return {order, torch::stable::clone(scores)};
  const Tensor sorted = index_select(classes, order);
  const int64_t* class_data = idxs ? sorted.const_data_ptr<int64_t>() : nullptr;
  const Tensor stays =
      type == ScalarType::Double
          ? soft_rounds(corners, order, class_data,
                        soft_rule<double>(iou_threshold, gaussian, sigma), min_score, lowered)
          : soft_rounds(corners, order, class_data,
                        soft_rule<float>(iou_threshold, gaussian, sigma), min_score, lowered);
  const Tensor by_score = argsort(lowered, /*descending=*/true);
  const Tensor keep = masked_select(by_score, index_select(stays, by_score));
  return {keep, as_contiguous(index_select(lowered, keep), scores.scalar_type())};
}

}  // namespace segdet::nms

SEGDET_CUDA_IMPL(m) { m.impl("soft_nms", TORCH_BOX(&segdet::nms::soft_nms_cuda)); }
