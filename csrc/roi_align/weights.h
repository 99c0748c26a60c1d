// What every bin of RoIAlign takes of which cell, worked out once for all channels.
//
// Bilinear samples averaged over a bin are a weighted sum of cells, and a weight is a product of
// one factor of the row and one of the column. So a region is two short lists of factors.
#pragma once

#include <algorithm>
#include <tuple>
#include <utility>
#include <vector>

#include "roi_align.h"

namespace segdet::roi_align {

template <class T>
struct Term {
  int64_t cell;  // along the axis
  T weight;
};

template <class T>
struct Terms {  // of one bin, or of several that follow each other
  const Term<T>*first, *last;
  const Term<T>* begin() const { return first; }
  const Term<T>* end() const { return last; }
};

// One axis of all regions.
template <class T>
class AxisWeights {
 public:
  AxisWeights(int64_t bins, int64_t size) : bins_(bins), size_(size) {}

  void add_region(const Axis<double>& axis) {
    for (int64_t bin = 0; bin < bins_; ++bin) {
      const SampleRange range = samples_within(axis, bin, size_);
      for (int64_t i = range.begin; i < range.end; ++i) {
        Tap<double> tap;
        if (!tap_at(sample_position(axis, bin, i), size_, tap)) continue;
        add(tap.low, (1 - tap.fraction) / axis.samples);
        if (tap.high > tap.low) add(tap.high, tap.fraction / axis.samples);
      }
      begin_.push_back(int64_t(terms_.size()));
    }
  }

  int64_t bins() const { return bins_; }

  Terms<T> of_bin(int64_t region, int64_t bin) const {
    const int64_t* begin = begin_.data() + region * bins_ + bin;
    return {terms_.data() + begin[0], terms_.data() + begin[1]};
  }

  Terms<T> of_region(int64_t region) const {
    return {of_bin(region, 0).first, of_bin(region, bins_ - 1).last};
  }

 private:
  // Neighbouring samples share cells: they are among the last two terms of the bin.
  void add(int64_t cell, double weight) {
    const std::size_t bin_begin = std::size_t(begin_.back());
    for (std::size_t i = terms_.size(); i > bin_begin && i + 2 > terms_.size(); --i) {
      if (terms_[i - 1].cell == cell) {
        terms_[i - 1].weight += T(weight);
        return;
      }
    }
    terms_.push_back({cell, T(weight)});
  }

  int64_t bins_, size_;
  std::vector<Term<T>> terms_;
  std::vector<int64_t> begin_{0};  // of the terms of every bin, region after region
};

// From the first to behind the last cell that a region takes of one axis.
struct Span {
  int64_t low, high;
  int64_t size() const { return high - low; }
};

template <class T>
Span span_of(const Terms<T>& terms) {
  if (terms.first == terms.last) return {0, 0};
  const auto by_cell = [](const Term<T>& a, const Term<T>& b) { return a.cell < b.cell; };
  const auto [low, high] = std::minmax_element(terms.begin(), terms.end(), by_cell);
  return {low->cell, high->cell + 1};
}

// How rois (R, 5) are pooled.
struct Pooling {
  int64_t height, width;  // of the bins
  double spatial_scale;
  int64_t sampling_ratio;
  bool aligned;
};

struct Region {
  int64_t index;  // row of rois
  int64_t image;
  Span rows, columns;  // of the cells that it takes anything of
};

// Neighbours in an image follow each other, so that they find cells that they share in the cache.
inline bool before(const Region& a, const Region& b) {
  constexpr int64_t kStripe = 16;  // rows of cells
  const auto place = [](const Region& region) {
    return std::make_tuple(region.image, (region.rows.low + region.rows.high) / 2 / kStripe,
                           region.columns.low + region.columns.high);
  };
  return place(a) < place(b);
}

template <class T>
struct Regions {
  std::vector<Region> by_image;  // and by place
  AxisWeights<T> y, x;

  // Those of one image.
  std::pair<const Region*, const Region*> of_image(int64_t image) const {
    return std::equal_range(by_image.data(), by_image.data() + by_image.size(),
                            Region{0, image, {}, {}},
                            [](const Region& a, const Region& b) { return a.image < b.image; });
  }
};

template <class T>
Regions<T> make_regions(const Tensor& rois, int64_t batch, int64_t height, int64_t width,
                        const Pooling& pooling) {
  Regions<T> regions{{}, {pooling.height, height}, {pooling.width, width}};
  regions.by_image.reserve(rois.size(0));
  const T* roi = rois.const_data_ptr<T>();
  for (int64_t r = 0; r < rois.size(0); ++r, roi += 5) {
    SEGDET_CHECK(roi[0] >= 0 && roi[0] < T(batch), "segdet::roi_align: rois[", r,
                 ", 0] is the image's index in the batch and must be in [0, ", batch, "), is ",
                 roi[0]);
    regions.y.add_region(make_wide_axis(roi[2], roi[4], pooling.spatial_scale, pooling.aligned,
                                        pooling.height, pooling.sampling_ratio));
    regions.x.add_region(make_wide_axis(roi[1], roi[3], pooling.spatial_scale, pooling.aligned,
                                        pooling.width, pooling.sampling_ratio));
    regions.by_image.push_back(
        {r, int64_t(roi[0]), span_of(regions.y.of_region(r)), span_of(regions.x.of_region(r))});
  }
  std::stable_sort(regions.by_image.begin(), regions.by_image.end(), before);
  return regions;
}

}  // namespace segdet::roi_align
