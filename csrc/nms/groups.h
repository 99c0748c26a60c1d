// Elements class by class.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <unordered_map>
#include <vector>

namespace segdet::nms {

struct Groups {
  std::vector<int64_t> members;  // class by class, ascending within a class
  std::vector<int64_t> begin;    // where in `members` each class begins, and how many there are

  int64_t count() const { return int64_t(begin.size()) - 1; }
  int64_t size(int64_t group) const { return begin[group + 1] - begin[group]; }
  int64_t largest() const {
    int64_t most = 0;
    for (int64_t group = 0; group < count(); ++group) most = std::max(most, size(group));
    return most;
  }
};

inline Groups one_group(int64_t n) {
  Groups groups{std::vector<int64_t>(n), {0, n}};
  std::iota(groups.members.begin(), groups.members.end(), 0);
  return groups;
}

// class_of(i): of each element i < n. Classes come in the order of their first elements.
template <class ClassOf>
Groups group_by_class(int64_t n, const ClassOf& class_of) {
  std::unordered_map<int64_t, int64_t> number_of;
  std::vector<int64_t> number(n), size;
  for (int64_t i = 0; i < n; ++i) {
    number[i] = number_of.try_emplace(class_of(i), int64_t(size.size())).first->second;
    if (number[i] == int64_t(size.size())) size.push_back(0);
    ++size[number[i]];
  }
  Groups groups{std::vector<int64_t>(n), {0}};
  for (const int64_t members : size) groups.begin.push_back(groups.begin.back() + members);
  std::vector<int64_t> next = groups.begin;
  for (int64_t i = 0; i < n; ++i) groups.members[next[number[i]]++] = i;
  return groups;
}

}  // namespace segdet::nms
