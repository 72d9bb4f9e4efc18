// Additions of codes one by one, and the rescaling for every processor: a code of few bits is the number of limits that
// the input code has passed, counted in vectors of 16.
#include "addition.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <string>

#include "runtime.h"

namespace qil_deploy {

namespace {

constexpr float largest_ratio = 1 << 20;  // so that sums stay far below 2**31

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

void rescale(const CodeTable& table, const uint8_t* x, size_t count, uint8_t* y) {
  if (!table.is_counted) return look_up_one_by_one(table, x, count, y);
  const Codes top = Codes{} + table.top;
  const Codes last[] = {Codes{} + table.last[0], Codes{} + table.last[1], Codes{} + table.last[2]};
  size_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    Codes codes, result = top;
    std::memcpy(&codes, x + i, lanes);
    for (const Codes& limit : last) result += Codes(codes <= limit);  // which is -1 where it holds
    std::memcpy(y + i, &result, lanes);
  }
  look_up_one_by_one(table, x + i, count - i, y + i);
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
  }
  table.is_counted = table.codes[255] - table.codes[0] <= CodeTable::most_rises;
  table.top = uint8_t(table.codes[0] + CodeTable::most_rises);  // may wrap, as sums of bytes do
  std::fill(std::begin(table.last), std::end(table.last), uint8_t{255});
  int rises = 0;
  for (int x = 1; table.is_counted && x < 256; x++) {
    for (int code = table.codes[x - 1]; code < table.codes[x]; code++) table.last[rises++] = uint8_t(x - 1);
  }
  return table;
}

const AddKernel scalar_add_kernel = {"scalar", add_one_by_one};
const RescaleKernel portable_rescale_kernel = {"counted steps", rescale};

}  // namespace qil_deploy
