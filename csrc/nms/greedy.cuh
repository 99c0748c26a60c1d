// Greedy suppression on CUDA, for boxes of any shape.
//
// Boxes are sorted by class, then by score. The card compares all pairs of a class and notes the
// result in bits, one for each box that comes later, 64 to a word. Then one block for each class
// walks down these rows: a box that is still there stays, and its row removes others. Both is done
// a chunk of rows at a time, so that memory grows with N, not with its square, and rows of boxes
// that an earlier chunk removed are not computed. The host waits for nothing.
#pragma once

#include "../cuda.cuh"
#include "nms.h"

namespace segdet::nms {

constexpr int kTile = 64;  // boxes to a word
constexpr int kSettleThreads = 256;
constexpr int64_t kMostRows = 4096, kMostWords = int64_t(1) << 25;  // of a chunk: 256 MB

using Bits = unsigned long long;

// Of box k in the order of class, then score: where its class begins and ends in it.
struct Range {
  int64_t begin, end;
};

// classes (n,) in that order, or null: all are one class.
__global__ void class_ranges_kernel(const int64_t* classes, int64_t n, Range* ranges) {
  for (int64_t k = thread_index(); k < n; k += thread_count()) {
    Range range = {0, n};
    if (classes != nullptr) {
      range = {k, k + 1};
      for (int64_t before = -1; before + 1 < range.begin;) {  // bisection
        const int64_t middle = (before + range.begin) / 2;
        (classes[middle] == classes[k] ? range.begin : before) = middle;
      }
      for (int64_t after = n; range.end < after;) {
        const int64_t middle = (range.end + after) / 2;
        if (classes[middle] == classes[k])
          range.end = middle + 1;
        else
          after = middle;
      }
    }
    ranges[k] = range;
  }
}

template <class Made>
Made* data_of(Tensor& bytes) {
  return reinterpret_cast<Made*>(bytes.mutable_data_ptr<uint8_t>());
}

// classes: as for the kernel. like: a tensor (n,) on the device. Returns n Ranges.
inline Tensor class_ranges(const Tensor& like, const int64_t* classes, cudaStream_t stream) {
  const int64_t n = like.size(0);
  Tensor out = torch::stable::new_empty(like, {n * int64_t(sizeof(Range))}, ScalarType::Byte);
  SEGDET_LAUNCH((class_ranges_kernel), blocks_for(n), kThreads, stream)
  (classes, n, data_of<Range>(out));
  return out;
}

// removed: a class has the words from removed[range.begin] on; bit b of word w is box 64 * (t + w)
// + b where t = range.begin / 64. They are at most as many as the class has boxes.
__device__ inline Bits& removed_word(Bits* removed, const Range& range, int64_t tile) {
  return removed[range.begin + tile - range.begin / kTile];
}

// Rows [first, first + rows) of the comparison: bit c % 64 of mask[(k - first) * words + c / 64 -
// first / 64] tells whether box k, if it stays, drops the later box c of its class. Words without a
// box of the class, and rows of boxes removed before, are left as they are. One block for each tile
// of 64 rows (y) and 64 later boxes (x).
template <class Shape>
__global__ void compare_kernel(const Shape* shapes, const Range* ranges, int64_t n, int64_t first,
                               typename Shape::Number iou_threshold, Bits* removed, int64_t words,
                               Bits* mask) {
  const int64_t row_begin = first + int64_t(blockIdx.y) * kTile;
  const int64_t column_begin = first + int64_t(blockIdx.x) * kTile;
  const int64_t last_row = row_begin + kTile < n ? row_begin + kTile - 1 : n - 1;
  if (column_begin < row_begin || column_begin >= ranges[last_row].end) return;
  __shared__ Shape columns[kTile];
  const int64_t column = column_begin + threadIdx.x;
  if (column < n) columns[threadIdx.x] = shapes[column];
  __syncthreads();
  const int64_t k = row_begin + threadIdx.x;
  if (k >= n) return;
  const Range range = ranges[k];
  if (removed_word(removed, range, k / kTile) >> (k % kTile) & 1) return;
  const Shape shape = shapes[k];
  const int begin = k < column_begin ? 0 : int(k + 1 - column_begin);
  const int end = range.end - column_begin < kTile ? int(range.end - column_begin) : kTile;
  Bits bits = 0;
  for (int c = begin; c < end; ++c)
    if (overlap(shape, columns[c], iou_threshold)) bits |= Bits(1) << c;
  mask[(k - first) * words + blockIdx.x] = bits;
}

// Settles boxes [first, last) from their rows of `mask`: stays[rank[k]], or stays[k] where rank is
// null, for box k. One block for each box; those that do not begin a class there leave at once.
__global__ void settle_kernel(const Range* ranges, const int64_t* rank, int64_t first, int64_t last,
                              int64_t words, const Bits* mask, Bits* removed, bool* stays) {
  const int64_t begin = first + blockIdx.x;
  const Range range = ranges[begin];
  if (begin != first && begin != range.begin) return;
  const int64_t end = range.end < last ? range.end : last;
  __shared__ Bits drops[kTile];
  __shared__ int kept_rows[kTile];
  __shared__ int kept;
  for (int64_t tile = begin / kTile; tile * kTile < end; ++tile) {
    const Bits* rows = mask + (tile * kTile - first) * words - first / kTile;
    const Bits already = removed_word(removed, range, tile);
    if (threadIdx.x < kTile) {
      const int64_t k = tile * kTile + threadIdx.x;
      const bool there = k >= begin && k < end && !(already >> threadIdx.x & 1);
      drops[threadIdx.x] = there ? rows[threadIdx.x * words + tile] : 0;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      Bits gone = already;
      kept = 0;
      for (int b = 0; b < kTile; ++b) {
        const int64_t k = tile * kTile + b;
        if (k < begin || k >= end || gone >> b & 1) continue;
        gone |= drops[b];
        kept_rows[kept++] = b;
      }
    }
    __syncthreads();
    if (int(threadIdx.x) < kept) {
      const int64_t k = tile * kTile + kept_rows[threadIdx.x];
      stays[rank == nullptr ? k : rank[k]] = true;
    }
    for (int64_t t = tile + 1 + threadIdx.x; t * kTile < range.end; t += blockDim.x) {
      Bits gone = 0;
      for (int i = 0; i < kept; ++i) gone |= rows[kept_rows[i] * words + t];
      removed_word(removed, range, t) |= gone;
    }
    __syncthreads();
  }
}

// A Maker's make(const T*) turns its kNumbers numbers into its Shape<T>.
struct UprightMaker {
  template <class T>
  using Shape = Box<T>;
  static constexpr int kNumbers = 4;
  template <class T>
  __device__ static Box<T> make(const T* xyxy) {
    return make_box(xyxy);
  }
};

template <class Maker, class T>
__global__ void make_shapes_kernel(const T* boxes, const int64_t* order, int64_t n,
                                   typename Maker::template Shape<T>* shapes) {
  for (int64_t k = thread_index(); k < n; k += thread_count())
    shapes[k] = Maker::make(boxes + order[k] * Maker::kNumbers);
}

// boxes: contiguous, of type T. Returns their n shapes in that order.
template <class Maker, class T>
Tensor make_shapes(const Tensor& boxes, const Tensor& order, cudaStream_t stream) {
  using Shape = typename Maker::template Shape<T>;
  const int64_t n = order.size(0);
  Tensor out = torch::stable::new_empty(order, {n * int64_t(sizeof(Shape))}, ScalarType::Byte);
  SEGDET_LAUNCH((make_shapes_kernel<Maker, T>), blocks_for(n), kThreads, stream)
  (boxes.const_data_ptr<T>(), order.const_data_ptr<int64_t>(), n, data_of<Shape>(out));
  return out;
}

// boxes: contiguous, of type T. order: by class, then score. classes and rank: int64 (n,) in that
// order, or null, which means one class and the order by score alone. Returns (n,) bool by score.
template <class Maker, class T>
Tensor boxes_that_stay(const Tensor& boxes, const Tensor& order, const int64_t* classes,
                       const int64_t* rank, double iou_threshold) {
  using Shape = typename Maker::template Shape<T>;
  const int64_t n = order.size(0), tiles = (n + kTile - 1) / kTile;
  const cudaStream_t stream = current_stream(boxes);
  Tensor shapes = make_shapes<Maker, T>(boxes, order, stream);
  Tensor ranges = class_ranges(order, classes, stream);
  Tensor removed = torch::stable::new_zeros(order, {n * int64_t(sizeof(Bits))}, ScalarType::Byte);
  Tensor stays = torch::stable::new_zeros(order, {n}, ScalarType::Bool);
  const int64_t rows =
      kTile *
      std::max<int64_t>(1, std::min({tiles, kMostRows / kTile, kMostWords / tiles / kTile}));
  Tensor mask =
      torch::stable::new_empty(order, {rows * tiles * int64_t(sizeof(Bits))}, ScalarType::Byte);
  for (int64_t first = 0; first < n; first += rows) {
    const int64_t last = std::min(n, first + rows), words = tiles - first / kTile;
    const dim3 grid(static_cast<unsigned int>(words),
                    static_cast<unsigned int>((last - first + kTile - 1) / kTile));
    SEGDET_LAUNCH((compare_kernel<Shape>), grid, kTile, stream)
    (data_of<Shape>(shapes), data_of<Range>(ranges), n, first,
     threshold_as<typename Shape::Number>(iou_threshold), data_of<Bits>(removed), words,
     data_of<Bits>(mask));
    const auto blocks = static_cast<unsigned int>(classes == nullptr ? 1 : last - first);
    SEGDET_LAUNCH((settle_kernel), blocks, kSettleThreads, stream)
    (data_of<Range>(ranges), rank, first, last, words, data_of<Bits>(mask), data_of<Bits>(removed),
     stays.mutable_data_ptr<bool>());
  }
  return stays;
}

// idxs: the classes of the boxes, or null. Returns the indices (K,) int64 of the boxes that stay,
// best first.
template <class Maker>
Tensor greedy_cuda(const Tensor& boxes, const Tensor& scores, const Tensor* idxs,
                   double iou_threshold, const char* op) {
  const torch::stable::accelerator::DeviceGuard guard(boxes.get_device_index());
  const Tensor by_score = argsort(scores, /*descending=*/true);
  if (boxes.size(0) == 0) return by_score;
  Tensor order = by_score;
  std::optional<Tensor> classes, rank;  // of the boxes by class, then score
  if (idxs != nullptr) {
    const Tensor sorted = index_select(as_contiguous(*idxs, ScalarType::Long), by_score);
    rank = argsort(sorted, /*descending=*/false);
    classes = index_select(sorted, *rank);
    order = index_select(by_score, *rank);
  }
  const int64_t* class_data = classes ? classes->const_data_ptr<int64_t>() : nullptr;
  const int64_t* rank_data = rank ? rank->const_data_ptr<int64_t>() : nullptr;
  const ScalarType type = compute_type(boxes.scalar_type());
  const auto run =
      type == ScalarType::Double ? boxes_that_stay<Maker, double> : boxes_that_stay<Maker, float>;
  const Tensor stays = run(as_contiguous(boxes, type), order, class_data, rank_data, iou_threshold);
  check_launch(op);
  return masked_select(by_score, stays);
}

}  // namespace segdet::nms
