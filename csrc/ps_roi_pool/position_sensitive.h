// What position-sensitive pooling and RoIAlign share (R-FCN, arXiv:1605.06409, section 2): each
// bin of a region reads channels of its own. A bin is a mean over a grid of cells or samples, so
// everything about the map's cells is said axis by axis.
#pragma once

#include <algorithm>
#include <vector>

#include "../feature_map.h"
#include "../roi_align/roi_align.h"

namespace segdet::position_sensitive {

// Channel (c * group_height + gh) * group_width + gw of the map feeds channel c of the bins of
// group (gh, gw).
struct Shape {
  int64_t batch, height, width;
  int64_t channels;  // of the result
  int64_t group_height, group_width;
  int64_t pooled_height, pooled_width;
};

SEGDET_HOST_DEVICE int64_t group_of(int64_t bin, int64_t groups, int64_t bins) {
  return bin * groups / bins;
}

inline Shape make_shape(std::array<int64_t, 4> map, int64_t pooled_height, int64_t pooled_width,
                        int64_t group_height, int64_t group_width, const char* op) {
  check_cells(map[2], map[3], op);
  SEGDET_CHECK(pooled_height > 0 && pooled_width > 0, "segdet::", op,
               ": output_size must be positive, is (", pooled_height, ", ", pooled_width, ")");
  SEGDET_CHECK(group_height > 0 && group_width > 0, "segdet::", op,
               ": group_size must be positive, is (", group_height, ", ", group_width, ")");
  const int64_t group = group_height * group_width;
  SEGDET_CHECK(map[1] % group == 0, "segdet::", op, ": input must have a multiple of group_size's ",
               group, " channels, has ", map[1]);
  return {map[0],       map[2],      map[3],        map[1] / group,
          group_height, group_width, pooled_height, pooled_width};
}

inline void check_grad(const Tensor& grad, const Tensor& rois, const Shape& shape, const char* op) {
  SEGDET_CHECK(grad.size(0) == rois.size(0) && grad.size(1) == shape.channels, "segdet::", op,
               ": grad must be (R, C, h, w) with R = ", rois.size(0), " and C = ", shape.channels,
               ", starts with (", grad.size(0), ", ", grad.size(1), ")");
}

// What one bin takes of one cell of an axis.
template <class T>
struct Term {
  int64_t cell;
  T weight;
};

// The terms of every bin of every region on one axis, and by what their sum is divided.
template <class T>
class AxisTerms {
 public:
  using Number = T;

  explicit AxisTerms(int64_t bins) : bins_(bins) {}

  // Cells that the last few terms of the bin have already add to their weights.
  void add(int64_t cell, double weight) {
    const std::size_t end = terms_.size();
    for (std::size_t i = end; i > std::size_t(begin_.back()) && i + 2 > end; --i) {
      if (terms_[i - 1].cell == cell) {
        terms_[i - 1].weight += T(weight);
        return;
      }
    }
    terms_.push_back({cell, T(weight)});
  }

  void end_bin(double count) {
    begin_.push_back(int64_t(terms_.size()));
    count_.push_back(T(count));
  }

  struct Bin {
    const Term<T>*first, *last;
    T count;
    const Term<T>* begin() const { return first; }
    const Term<T>* end() const { return last; }
  };

  Bin of(int64_t region, int64_t bin) const {
    const int64_t i = region * bins_ + bin;
    return {terms_.data() + begin_[i], terms_.data() + begin_[i + 1], count_[i]};
  }

 private:
  int64_t bins_;
  std::vector<int64_t> begin_{0};
  std::vector<Term<T>> terms_;
  std::vector<T> count_;
};

template <class T>
struct Regions {
  std::vector<std::vector<int64_t>> of_image;
  AxisTerms<T> y, x;
};

// rois (R, 5) contiguous. add_axis(low, high, bins, size, terms): the rule of the op for one axis,
// corners in pixels.
template <class T, class AddAxis>
Regions<T> make_regions(const Tensor& rois, const Shape& shape, const char* op,
                        const AddAxis& add_axis) {
  const T* roi = rois.const_data_ptr<T>();
  Regions<T> regions{std::vector<std::vector<int64_t>>(shape.batch),
                     AxisTerms<T>(shape.pooled_height), AxisTerms<T>(shape.pooled_width)};
  for (int64_t r = 0; r < rois.size(0); ++r, roi += 5) {
    SEGDET_CHECK(roi[0] >= 0 && roi[0] < T(shape.batch), "segdet::", op, ": rois[", r,
                 ", 0] is the image's index in the batch and must be in [0, ", shape.batch,
                 "), is ", roi[0]);
    regions.of_image[int64_t(roi[0])].push_back(r);
    add_axis(double(roi[2]), double(roi[4]), shape.pooled_height, shape.height, regions.y);
    add_axis(double(roi[1]), double(roi[3]), shape.pooled_width, shape.width, regions.x);
  }
  return regions;
}

// input (B, C * group, H, W) -> out (R, C, h, w), on the CPU. T: type of the arithmetic.
template <class T>
void pool(const Tensor& input, const Regions<T>& regions, const Shape& shape, Tensor& out);

// The transpose: grad (R, C, h, w) -> out (B, C * group, H, W).
template <class T>
void spread(const Tensor& grad, const Regions<T>& regions, const Shape& shape, Tensor& out);

// The CPU's ops, given their rule for one axis.
template <class AddAxis>
Tensor pool_by(const AddAxis& add_axis, const Tensor& input, const Tensor& rois,
               int64_t pooled_height, int64_t pooled_width, int64_t group_height,
               int64_t group_width, const char* op) {
  check_map(input, "input", op);
  check_rois(rois, op);
  const Shape shape = make_shape({input.size(0), input.size(1), input.size(2), input.size(3)},
                                 pooled_height, pooled_width, group_height, group_width, op);
  const ScalarType type = compute_type(input.scalar_type());
  const Tensor boxes = as_contiguous(rois, type);
  Tensor out = empty_map_like(input, {rois.size(0), shape.channels, pooled_height, pooled_width});
  if (type == ScalarType::Double)
    pool(input, make_regions<double>(boxes, shape, op, add_axis), shape, out);
  else
    pool(input, make_regions<float>(boxes, shape, op, add_axis), shape, out);
  return out;
}

template <class AddAxis>
Tensor spread_by(const AddAxis& add_axis, const Tensor& grad, const Tensor& rois,
                 std::array<int64_t, 4> input, int64_t group_height, int64_t group_width,
                 const char* op) {
  check_map(grad, "grad", op);
  check_rois(rois, op);
  const Shape shape = make_shape(input, grad.size(2), grad.size(3), group_height, group_width, op);
  check_grad(grad, rois, shape, op);
  const ScalarType type = compute_type(grad.scalar_type());
  const Tensor boxes = as_contiguous(rois, type);
  Tensor out = empty_map_like(grad, input);
  if (type == ScalarType::Double)
    spread(grad, make_regions<double>(boxes, shape, op, add_axis), shape, out);
  else
    spread(grad, make_regions<float>(boxes, shape, op, add_axis), shape, out);
  return out;
}

}  // namespace segdet::position_sensitive
