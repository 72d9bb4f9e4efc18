// The operators ResidualAdd (sums of two codes) and LowBitRescale (codes on another grid), and the interface of their
// kernels.
//
// ResidualAdd is com.microsoft::QLinearAdd of two tensors of one shape, LowBitRescale is QLinearAdd of a tensor and one
// constant code, then Clip. For codes A and B, with the scales and zero points of A, B and the result, QLinearAdd computes
//
//   y = rint((A - a_zero) * a_ratio + (B - b_zero) * b_ratio) + y_zero,  a_ratio = a_scale / y_scale,  in 0..255
//
// in float32. Exports prove that no result is near a tie, so that every order of operations gives the same code. The order
// here is that of ONNX Runtime on x86 with AVX2, so that even other files give the same codes there as without the library:
//
//   fixed = y_zero - fma(a_ratio, a_zero, b_ratio * b_zero)
//   y     = rint(fma(A, a_ratio, fma(B, b_ratio, fixed)))
//
// There are only 256 codes to convert to another grid, so the results are computed when the session is created. They
// increase with the input code, since ratios are positive. A code of 2 bits is therefore the number of limits that the
// input code has passed, which takes three comparisons of whole vectors.
#pragma once

#include <cstddef>
#include <cstdint>

namespace qil_deploy {

// A scale and a zero point.
struct Grid {
  float scale;
  uint8_t zero_point;
};

struct Addition {
  float a_ratio, b_ratio, fixed;
};

// Throws std::invalid_argument for scales with which some result is not a number that fits 32 bits.
Addition addition_of(const Grid& a, const Grid& b, const Grid& y);

uint8_t sum_of(const Addition& addition, uint8_t a, uint8_t b);

// The result for each code. If the results rise by at most `most_rises` in total,
//
//   codes[x] = top - (how many of `last` are x or above)
struct CodeTable {
  static constexpr int most_rises = 3;
  alignas(64) uint8_t codes[256];
  bool is_counted;
  uint8_t top, last[most_rises];
};

// Of sums with one constant code, between two limits.
CodeTable rescaling_table(const Addition& addition, uint8_t b, uint8_t low, uint8_t high);

struct AddKernel {
  const char* name;
  void (*add)(const Addition& addition, const uint8_t* a, const uint8_t* b, size_t count, uint8_t* y);
};

struct RescaleKernel {
  const char* name;
  void (*look_up)(const CodeTable& table, const uint8_t* x, size_t count, uint8_t* y);
};

inline void look_up_one_by_one(const CodeTable& table, const uint8_t* x, size_t count, uint8_t* y) {
  for (size_t i = 0; i < count; i++) y[i] = table.codes[x[i]];
}

extern const AddKernel scalar_add_kernel;
extern const RescaleKernel portable_rescale_kernel;

}  // namespace qil_deploy
