// Boxes by column, and the vectorised search for those that may overlap a given box.
#pragma once

#include <cstdint>
#include <vector>

#include "nms.h"

namespace segdet::nms {

constexpr int64_t kLanes = 16;  // boxes that are looked at together

template <class T>
struct Columns {
  // Whole blocks are read: the last one ends in boxes without extent.
  explicit Columns(int64_t n)
      : x1(n + kLanes), y1(n + kLanes), x2(n + kLanes), y2(n + kLanes), area(n + kLanes) {}

  Box<T> at(int64_t i) const { return {x1[i], y1[i], x2[i], y2[i], area[i]}; }
  void set(int64_t i, const Box<T>& box) {
    x1[i] = box.x1;
    y1[i] = box.y1;
    x2[i] = box.x2;
    y2[i] = box.y2;
    area[i] = box.area;
  }

  std::vector<T> x1, y1, x2, y2, area;
};

// Of the blocks of kLanes boxes that begin at begin, begin + kLanes, ... before `end`, the first
// that may hold a box with intersection > enough * union; `end` or more if there is none. Rounding
// may turn a pair at the limit either way: pass a little less than what counts.
int64_t next_likely(const Columns<float>& boxes, int64_t begin, int64_t end, const Box<float>& box,
                    float enough);
int64_t next_likely(const Columns<double>& boxes, int64_t begin, int64_t end,
                    const Box<double>& box, double enough);

}  // namespace segdet::nms
