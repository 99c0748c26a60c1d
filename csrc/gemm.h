// Products of small matrices that stay in the cache, on one thread.
//
// A "block" is a row-major matrix of at most kBlock columns whose rows lie kStride elements apart.
// Known when this is compiled, that makes the addresses in the inner loop constants; and as it is
// no power of two, rows do not compete for the same places in the cache. Products work on whole
// tiles: callers round sizes up, leave room for it, and ignore what is computed beyond theirs.
#pragma once

#include <cstdint>

#include "simd.h"

namespace segdet {

constexpr int64_t kBlock = 256;
constexpr int64_t kStride = 272;
constexpr int64_t kTileRows = 12;
template <class T>
constexpr int64_t kPanel = 128 / int64_t(sizeof(T));  // columns that are worked on together

constexpr int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// How the operands lie: element (i, k) of a is a[i * row + k * column], row k of b is at
// b[k * b_row], and the next kPanel columns of b follow after `depth * b_row` or `b_panel`.
template <class T>
struct RowsByPanels {  // a: a block; b: (columns / kPanel, depth, kPanel), "packed"
  static constexpr int64_t row = kStride, column = 1, b_row = kPanel<T>;
  static int64_t b_panel(int64_t depth) { return depth * kPanel<T>; }
};
template <class T>
struct ColumnsByRows {  // a: a block, transposed; b: a block
  static constexpr int64_t row = 1, column = kStride, b_row = kStride;
  static int64_t b_panel(int64_t) { return kPanel<T>; }
};

// c (ROWS, 2 vectors) += a (ROWS, depth) b (depth, 2 vectors), all sums in registers.
template <class Layout, int BYTES, int ROWS, class T>
SEGDET_INLINE void multiply_tile(int64_t depth, const T* a, const T* b, T* c) {
  typedef T Vector __attribute__((vector_size(BYTES), aligned(alignof(T)), may_alias));
  constexpr int64_t kLanes = BYTES / sizeof(T);
  Vector sum[ROWS][2];
#pragma GCC unroll 16
  for (int64_t i = 0; i < ROWS; ++i) {
    sum[i][0] = *reinterpret_cast<const Vector*>(c + i * kStride);
    sum[i][1] = *reinterpret_cast<const Vector*>(c + i * kStride + kLanes);
  }
  for (int64_t k = 0; k < depth; ++k, a += Layout::column, b += Layout::b_row) {
    const Vector left = *reinterpret_cast<const Vector*>(b);
    const Vector right = *reinterpret_cast<const Vector*>(b + kLanes);
#pragma GCC unroll 16
    for (int64_t i = 0; i < ROWS; ++i) {
      sum[i][0] += a[i * Layout::row] * left;
      sum[i][1] += a[i * Layout::row] * right;
    }
  }
#pragma GCC unroll 16
  for (int64_t i = 0; i < ROWS; ++i) {
    *reinterpret_cast<Vector*>(c + i * kStride) = sum[i][0];
    *reinterpret_cast<Vector*>(c + i * kStride + kLanes) = sum[i][1];
  }
}

// c (rows, columns), a block, += a (rows, depth) b (depth, columns).
template <template <class> class Layout, int BYTES, int ROWS, class T>
SEGDET_INLINE void multiply_tiles(int64_t rows, int64_t depth, int64_t columns, const T* a,
                                  const T* b, T* c) {
  using L = Layout<T>;
  for (int64_t i = 0; i < rows; i += ROWS)
    for (int64_t j = 0; j < columns; j += 2 * BYTES / int64_t(sizeof(T)))
      multiply_tile<L, BYTES, ROWS>(depth, a + i * L::row,
                                    b + j / kPanel<T> * L::b_panel(depth) + j % kPanel<T>,
                                    c + i * kStride + j);
}

// rows: a multiple of kTileRows; columns: a multiple of kPanel.
//
// multiply: c (rows, columns) += a (rows, depth) b, where b is packed.
// multiply_transposed: c (rows, columns) += a^T b with a (depth, rows) and b (depth, columns).
#define SEGDET_MULTIPLY(TARGET, BYTES, ROWS, T)                                                    \
  TARGET inline void multiply(int64_t rows, int64_t depth, int64_t columns, const T* a,            \
                              const T* b, T* c) {                                                  \
    multiply_tiles<RowsByPanels, BYTES, ROWS>(rows, depth, columns, a, b, c);                      \
  }                                                                                                \
  TARGET inline void multiply_transposed(int64_t rows, int64_t depth, int64_t columns, const T* a, \
                                         const T* b, T* c) {                                       \
    multiply_tiles<ColumnsByRows, BYTES, ROWS>(rows, depth, columns, a, b, c);                     \
  }
// Vectors as wide as each level has them, and as many rows as its registers hold sums of.
#ifdef SEGDET_SIMD_LEVEL
SEGDET_MULTIPLY(SEGDET_SIMD_LEVEL("arch=x86-64-v4"), 64, 12, float)
SEGDET_MULTIPLY(SEGDET_SIMD_LEVEL("arch=x86-64-v4"), 64, 12, double)
SEGDET_MULTIPLY(SEGDET_SIMD_LEVEL("arch=x86-64-v3"), 32, 6, float)
SEGDET_MULTIPLY(SEGDET_SIMD_LEVEL("arch=x86-64-v3"), 32, 6, double)
SEGDET_MULTIPLY(SEGDET_SIMD_LEVEL("default"), 16, 4, float)
SEGDET_MULTIPLY(SEGDET_SIMD_LEVEL("default"), 16, 4, double)
#else
SEGDET_MULTIPLY(, 16, 4, float)
SEGDET_MULTIPLY(, 16, 4, double)
#endif
#undef SEGDET_MULTIPLY

}  // namespace segdet
