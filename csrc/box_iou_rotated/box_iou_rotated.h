// Intersection over union of rotated boxes, for CPU and CUDA: in float64 whatever the boxes' type,
// because boxes are small beside their coordinates and their sides may nearly coincide.
#pragma once

#include <cmath>

#include "../nms/nms.h"

namespace segdet::nms {

// `area` is 0 where the box overlaps nothing: below 1e-14, or a number is NaN.
struct RotatedRectangle {
  double x, y, w, h, cos, sin, area;
};

// Rounds what it computes in float64 to the type of the boxes.
template <class T>
struct RotatedBox : RotatedRectangle {
  using Number = T;
};

// centre, size, degrees; counter-clockwise on the screen, where y points down.
template <class T>
SEGDET_HOST_DEVICE RotatedBox<T> make_rotated_box(const T* xywha) {
  const double w = xywha[2], h = xywha[3],
               radians = double(xywha[4]) * (3.14159265358979323846 / 180);
  const double area = w * h;
  return {
      {xywha[0], xywha[1], w, h, std::cos(radians), std::sin(radians), area >= 1e-14 ? area : 0.0}};
}

SEGDET_HOST_DEVICE Box<double> bounds(const RotatedRectangle& r) {
  const double half_x = (std::fabs(r.w * r.cos) + std::fabs(r.h * r.sin)) / 2;
  const double half_y = (std::fabs(r.w * r.sin) + std::fabs(r.h * r.cos)) / 2;
  return {r.x - half_x, r.y - half_y, r.x + half_x, r.y + half_y, r.area};
}

struct Point {
  double x, y;
};

// A convex polygon. Four corners cut four times become 8, or 20 where rounding makes a needle's
// sides cross a cut more than twice: each cut adds at most half as many as there are.
struct Polygon {
  Point corners[20];
  int size;
};

// The part of `polygon` where a * x + b * y <= limit.
SEGDET_HOST_DEVICE void cut(Polygon& polygon, double a, double b, double limit) {
  const Polygon whole = polygon;
  polygon.size = 0;
  for (int i = 0; i < whole.size; ++i) {
    const Point p = whole.corners[i], q = whole.corners[i + 1 < whole.size ? i + 1 : 0];
    const double inside_p = limit - a * p.x - b * p.y, inside_q = limit - a * q.x - b * q.y;
    if (inside_p >= 0) polygon.corners[polygon.size++] = p;
    if ((inside_p > 0 && inside_q < 0) || (inside_p < 0 && inside_q > 0)) {
      const double t = inside_p / (inside_p - inside_q);
      polygon.corners[polygon.size++] = {p.x + t * (q.x - p.x), p.y + t * (q.y - p.y)};
    }
  }
}

SEGDET_HOST_DEVICE double area_of(const Polygon& polygon) {
  double twice = 0;
  const Point origin = polygon.corners[0];
  for (int i = 1; i + 1 < polygon.size; ++i) {
    const Point p = polygon.corners[i], q = polygon.corners[i + 1];
    twice += (p.x - origin.x) * (q.y - origin.y) - (p.y - origin.y) * (q.x - origin.x);
  }
  return std::fabs(twice) / 2;
}

// The area that both cover: b's corners, seen from a, cut by a's sides.
SEGDET_HOST_DEVICE double intersection(const RotatedRectangle& a, const RotatedRectangle& b) {
  const Box<double> around_a = bounds(a), around_b = bounds(b);
  if (!(intersection(around_a, around_b) > 0)) return 0;
  const double dx = b.x - a.x, dy = b.y - a.y;
  const double x = dx * a.cos - dy * a.sin, y = dx * a.sin + dy * a.cos;
  const double cos = (a.cos * b.cos + a.sin * b.sin) / 2, sin = (a.cos * b.sin - a.sin * b.cos) / 2;
  const Point along_w = {b.w * cos, -b.w * sin}, along_h = {b.h * sin, b.h * cos};
  Polygon polygon = {{{x - along_w.x - along_h.x, y - along_w.y - along_h.y},
                      {x + along_w.x - along_h.x, y + along_w.y - along_h.y},
                      {x + along_w.x + along_h.x, y + along_w.y + along_h.y},
                      {x - along_w.x + along_h.x, y - along_w.y + along_h.y}},
                     4};
  cut(polygon, 1, 0, a.w / 2);
  cut(polygon, -1, 0, a.w / 2);
  cut(polygon, 0, 1, a.h / 2);
  cut(polygon, 0, -1, a.h / 2);
  const double area = area_of(polygon), most = a.area < b.area ? a.area : b.area;
  return area < most ? area : most;
}

// In [0, 1]; 0 where one has no area.
template <class T>
SEGDET_HOST_DEVICE T iou(const RotatedBox<T>& a, const RotatedBox<T>& b) {
  if (!(a.area > 0 && b.area > 0)) return T(0);
  const double inter = intersection(static_cast<const RotatedRectangle&>(a), b);
  return inter > 0 ? T(inter / (a.area + b.area - inter)) : T(0);
}

// Strictly above, after rounding to T. The upright boxes around them tell most pairs apart.
template <class T>
SEGDET_HOST_DEVICE bool overlap(const RotatedBox<T>& a, const RotatedBox<T>& b, T iou_threshold) {
  const double most = intersection(bounds(a), bounds(b));
  if (most < iou_threshold * (1 - 1e-5) * (a.area + b.area - most)) return false;
  return iou(a, b) > iou_threshold;
}

inline void check_rotated_pair(const Tensor& boxes1, const Tensor& boxes2) {
  for (const Tensor* boxes : {&boxes1, &boxes2}) {
    const char* name = boxes == &boxes1 ? "boxes1" : "boxes2";
    SEGDET_CHECK(boxes->dim() == 2 && boxes->size(1) == 5, "segdet::box_iou_rotated: ", name,
                 " must be (N, 5), has ", boxes->dim(), " dimensions and ", boxes->numel(),
                 " elements");
    SEGDET_CHECK(is_floating(boxes->scalar_type()), "segdet::box_iou_rotated: ", name,
                 " must be floating point, is ", torch::headeronly::toString(boxes->scalar_type()));
  }
  SEGDET_CHECK(boxes1.scalar_type() == boxes2.scalar_type(),
               "segdet::box_iou_rotated: boxes2 must be of boxes1's type, ",
               torch::headeronly::toString(boxes1.scalar_type()), ", is ",
               torch::headeronly::toString(boxes2.scalar_type()));
}

}  // namespace segdet::nms
