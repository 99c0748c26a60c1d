// Matrix NMS on the CPU. A mask becomes one bit for each pixel and the range of words that are not
// zero; masks of one class are compared in words. Threads share the masks.
#include "matrix_nms.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "../nms/greedy.h"
#include "../simd.h"

namespace segdet::nms {
namespace {

// Bit i is byte i of 64 bytes that are 0 or 1: the product gathers eight of them in its top byte.
SEGDET_INLINE Word pack_word(const uint8_t* pixels) {
  Word word = 0;
  for (int byte = 0; byte < 8; ++byte) {
    Word eight;
    std::memcpy(&eight, pixels + 8 * byte, 8);
    word |= (eight * 0x0102040810204080 >> 56) << (8 * byte);
  }
  return word;
}

SEGDET_SIMD void pack_words(const uint8_t* pixels, int64_t words, Word* bits) {
  for (int64_t w = 0; w < words; ++w) bits[w] = pack_word(pixels + kWordPixels * w);
}

SEGDET_SIMD int64_t common_pixels(const Word* a, const Word* b, int64_t words) {
  int64_t count = 0;
  for (int64_t w = 0; w < words; ++w) count += __builtin_popcountll(a[w] & b[w]);
  return count;
}

struct PackedMasks {
  explicit PackedMasks(const Tensor& masks)
      : pixels(masks.size(0) == 0 ? 0 : masks.numel() / masks.size(0)),
        words((pixels + kWordPixels - 1) / kWordPixels),
        bits(masks.size(0) * words),
        area(masks.size(0)),
        first(masks.size(0)),
        end(masks.size(0)) {
    const auto* data = static_cast<const uint8_t*>(masks.const_data_ptr());
    torch::stable::parallel_for(0, masks.size(0), 8, [&](int64_t low, int64_t high) {
      for (int64_t i = low; i < high; ++i) pack(data + i * pixels, i);
    });
  }

  int64_t common(int64_t i, int64_t j) const {
    const int64_t from = std::max(first[i], first[j]), to = std::min(end[i], end[j]);
    if (from >= to) return 0;
    return common_pixels(&bits[i * words + from], &bits[j * words + from], to - from);
  }

  int64_t pixels, words;
  std::vector<Word> bits;                 // (N, words)
  std::vector<int64_t> area, first, end;  // of each mask; its words that are not zero

 private:
  void pack(const uint8_t* mask, int64_t i) {
    Word* own = bits.data() + i * words;
    const int64_t whole = pixels / kWordPixels;
    pack_words(mask, whole, own);
    if (whole < words) {
      uint8_t rest[kWordPixels] = {};
      std::memcpy(rest, mask + whole * kWordPixels, pixels - whole * kWordPixels);
      pack_words(rest, 1, own + whole);
    }
    while (first[i] < words && own[first[i]] == 0) ++first[i];
    end[i] = words;
    while (end[i] > first[i] && own[end[i] - 1] == 0) --end[i];
    area[i] = common_pixels(own, own, words);
  }
};

// members: the n masks of one class, from the best down. Lowers their scores.
template <class T>
void decay_class(const PackedMasks& masks, const int64_t* members, int64_t n,
                 const MatrixRule<T>& rule, T* scores) {
  std::vector<T> ious(n * (n - 1) / 2), most(n);  // with the better ones
  torch::stable::parallel_for(0, n, 16, [&](int64_t low, int64_t high) {
    for (int64_t j = low; j < high; ++j) {
      T* row = ious.data() + j * (j - 1) / 2;
      for (int64_t i = 0; i < j; ++i) {
        const int64_t a = members[i], b = members[j];
        row[i] = mask_iou<T>(masks.common(a, b), masks.area[a], masks.area[b]);
        most[j] = std::max(most[j], row[i]);
      }
    }
  });
  for (int64_t j = 0; j < n; ++j) {
    const T* row = ious.data() + j * (j - 1) / 2;
    T left = 1;
    for (int64_t i = 0; i < j; ++i)
      if (row[i] > 0) left = std::min(left, rule.decay(row[i], most[i]));
    scores[members[j]] *= left;
  }
}

template <class T>
Tensor matrix_nms(const Tensor& masks, const Tensor& scores, const Tensor& classes,
                  const MatrixRule<T>& rule) {
  const PackedMasks packed(masks);
  const Tensor order = argsort(scores, /*descending=*/true);
  const int64_t *by_score = order.const_data_ptr<int64_t>(),
                *class_of = classes.const_data_ptr<int64_t>();
  Groups groups =
      group_by_class(masks.size(0), [&](int64_t rank) { return class_of[by_score[rank]]; });
  for (int64_t& member : groups.members) member = by_score[member];
  Tensor lowered = torch::stable::clone(as_contiguous(scores, compute_type(scores.scalar_type())));
  for (int64_t group = 0; group < groups.count(); ++group)
    decay_class(packed, groups.members.data() + groups.begin[group], groups.size(group), rule,
                lowered.mutable_data_ptr<T>());
  return as_contiguous(lowered, scores.scalar_type());
}

}  // namespace

// masks (N, H, W) bool, scores (N,), classes (N,) whole numbers -> lowered scores (N,).
Tensor matrix_nms_cpu(const Tensor& masks, const Tensor& scores, const Tensor& classes,
                      bool gaussian, double sigma) {
  check_matrix_nms(masks, scores, classes, sigma);
  const Tensor pixels = torch::stable::contiguous(masks);
  const Tensor class_of = as_contiguous(classes, ScalarType::Long);
  return scores.scalar_type() == ScalarType::Double
             ? matrix_nms(pixels, scores, class_of, MatrixRule<double>{gaussian, sigma})
             : matrix_nms(pixels, scores, class_of, MatrixRule<float>{gaussian, float(sigma)});
}

}  // namespace segdet::nms

STABLE_TORCH_LIBRARY_FRAGMENT(segdet, m) {
  m.def(
      "matrix_nms(Tensor masks, Tensor scores, Tensor classes, bool gaussian, float sigma) -> "
      "Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(segdet, CPU, m) {
  m.impl("matrix_nms", TORCH_BOX(&segdet::nms::matrix_nms_cpu));
}
