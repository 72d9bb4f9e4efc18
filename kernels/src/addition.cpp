// Additions of codes one by one, and the rescaling that every processor runs: codes of few bits are how many limits a code
// has passed, counted in vectors of 16.
#include "addition.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "runtime.h"

namespace qil_deploy {

namespace {

constexpr float largest_ratio = 1 << 20;  // so that sums stay far below 2**31
constexpr size_t most_steps = 8;          // that are faster to count than to look up

float ratio_of(const Grid& grid, const Grid& y) {
  const float ratio = grid.scale / y.scale;
  if (!(grid.scale > 0) || !(y.scale > 0) || !(ratio <= largest_ratio)) {
    refuse("scales must be positive, and none above 2**20 times that of the result; they are " +
           std::to_string(grid.scale) + " and " + std::to_string(y.scale));
  }
  return ratio;
}

void add_one_by_one(const Addition& addition, const uint8_t* a, const uint8_t* b, size_t count, uint8_t* y) {
  for (size_t i = 0; i < count; i++) y[i] = sum_of(addition, a[i], b[i]);
}

constexpr size_t lanes = 16;
typedef uint8_t Codes __attribute__((vector_size(lanes)));  // which compilers have on every processor

void count_steps(const CodeTable& table, const uint8_t* x, size_t count, uint8_t* y) {
  const Codes lowest = Codes{} + table.codes[0];
  for (size_t i = 0; i + lanes <= count; i += lanes) {
    Codes codes, sums = lowest;
    std::memcpy(&codes, x + i, lanes);
    for (const CodeTable::Step& step : table.steps) sums += Codes(codes >= step.from) & step.rise;
    std::memcpy(y + i, &sums, lanes);
  }
  for (size_t i = count / lanes * lanes; i < count; i++) y[i] = table.codes[x[i]];
}

void look_up(const CodeTable& table, const uint8_t* x, size_t count, uint8_t* y) {
  if (table.steps.size() <= most_steps) return count_steps(table, x, count, y);
  for (size_t i = 0; i < count; i++) y[i] = table.codes[x[i]];
}

}  // namespace

Addition addition_of(const Grid& a, const Grid& b, const Grid& y) {
  const float a_ratio = ratio_of(a, y), b_ratio = ratio_of(b, y);
  const float zeros = std::fma(a_ratio, float(a.zero_point), b_ratio * float(b.zero_point));
  return {a_ratio, b_ratio, float(y.zero_point) - zeros};
}

uint8_t sum_of(const Addition& addition, uint8_t a, uint8_t b) {
  const float sum = std::fma(float(a), addition.a_ratio, std::fma(float(b), addition.b_ratio, addition.fixed));
  return uint8_t(std::clamp(std::nearbyint(sum), 0.0f, 255.0f));
}

CodeTable rescaling_table(const Addition& addition, uint8_t b, uint8_t low, uint8_t high) {
  CodeTable table;
  for (int x = 0; x < 256; x++) {
    // As in Clip, the upper limit wins.
    table.codes[x] = std::min(std::max(sum_of(addition, uint8_t(x), b), low), high);
    const int rise = x == 0 ? 0 : table.codes[x] - table.codes[x - 1];
    if (rise != 0) table.steps.push_back({uint8_t(x), uint8_t(rise)});
  }
  return table;
}

const AddKernel scalar_add_kernel = {"scalar", add_one_by_one};
const RescaleKernel portable_rescale_kernel = {"counted steps", look_up};

}  // namespace qil_deploy
