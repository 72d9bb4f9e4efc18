#include "emptying.h"

#include <algorithm>

namespace qil_deploy::neon {

std::vector<int32_t> split(const std::vector<Reach>& reaches, size_t lanes, int32_t limit) {
  std::vector<int32_t> groups;
  std::vector<Reach> sums(lanes);
  int32_t length = 0;
  for (size_t step = 0; step < reaches.size(); step += lanes, length++) {
    const Reach* added = &reaches[step];
    bool passes = false;
    for (size_t lane = 0; lane < lanes; lane++)
      passes |= sums[lane].up + added[lane].up > limit || sums[lane].down + added[lane].down > limit + 1;
    if (passes && length > 0) {
      groups.push_back(length);
      length = 0;
      std::fill(sums.begin(), sums.end(), Reach{});
    }
    for (size_t lane = 0; lane < lanes; lane++) {
      sums[lane].up += added[lane].up;
      sums[lane].down += added[lane].down;
    }
  }
  groups.push_back(length);
  return groups;
}

std::vector<Reach> add_groups(const std::vector<Reach>& reaches, size_t lanes, const std::vector<int32_t>& groups,
                              size_t lanes_per_sum) {
  const size_t sums = lanes / lanes_per_sum;
  std::vector<Reach> result(groups.size() * sums);
  const Reach* added = reaches.data();
  for (size_t group = 0; group < groups.size(); group++)
    for (int32_t step = 0; step < groups[group]; step++)
      for (size_t lane = 0; lane < lanes; lane++, added++) {
        Reach& sum = result[group * sums + lane / lanes_per_sum];
        sum.up += added->up;
        sum.down += added->down;
      }
  return result;
}

std::vector<Run> make_runs(int32_t row_steps, const std::vector<int32_t>& bytes, const std::vector<int32_t>& words) {
  std::vector<Run> runs;
  int32_t row = 0, first = 0;
  size_t group = 0;
  for (int32_t groups : words)
    for (int32_t left = groups; left > 0; left--, group++)
      for (int32_t steps = bytes[group]; steps > 0;) {
        const int32_t taken = std::min(steps, row_steps - first);
        steps -= taken;
        const Empties empties = steps > 0 ? Empties::nothing : left > 1 ? Empties::bytes : Empties::words;
        runs.push_back({row, first, taken, empties});
        first += taken;
        if (first == row_steps) {
          first = 0;
          row++;
        }
      }
  return runs;
}

}  // namespace qil_deploy::neon
