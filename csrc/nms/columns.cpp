#include "columns.h"

#include "../simd.h"

namespace segdet::nms {

#define SEGDET_NEXT_LIKELY(T)                                                          \
  SEGDET_SIMD int64_t next_likely(const Columns<T>& boxes, int64_t begin, int64_t end, \
                                  const Box<T>& box, T enough) {                       \
    const T *x1 = boxes.x1.data(), *y1 = boxes.y1.data(), *x2 = boxes.x2.data(),       \
            *y2 = boxes.y2.data(), *area = boxes.area.data();                          \
    for (; begin < end; begin += kLanes) {                                             \
      int likely = 0;                                                                  \
      for (int64_t i = begin; i < begin + kLanes; ++i) {                               \
        const T inter = intersection({x1[i], y1[i], x2[i], y2[i], T(0)}, box);         \
        likely |= inter > enough * (area[i] + box.area - inter);                       \
      }                                                                                \
      if (likely) break;                                                               \
    }                                                                                  \
    return begin;                                                                      \
  }
SEGDET_NEXT_LIKELY(float)
SEGDET_NEXT_LIKELY(double)
#undef SEGDET_NEXT_LIKELY

}  // namespace segdet::nms
