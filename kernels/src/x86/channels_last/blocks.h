// Common parts of the kernels in this folder. Output channels lie in the lanes of their registers, 16 words of 16 bits
// in each, so that small maps waste none; the input is packed with channels side by side (`packed_image.h`).
//
// A step multiplies the codes of 2 input channels of one pixel, broadcast over a register, with their weights, read from
// memory, and adds the two products to words. The words of a run of steps are then added up in 32 bits. Runs are cut, from
// the actual weights, where a word could overflow.
#pragma once

#include <vector>

#include "../../lowbit_conv.h"

namespace qil_deploy::channels_last {

constexpr int lanes = 16;
constexpr int step_channels = 2;   // input channels whose products one instruction adds up
constexpr int unrolled_steps = 4;  // runs are multiples of so many steps
constexpr int block_vectors = 4;   // of output channels whose sums are in registers at once, at most
constexpr int block_outputs = block_vectors * lanes;
constexpr int chunk_pixels = 16;  // output pixels, or tiles of them, that go through the weights of a block together

struct alignas(32) WeightVector {
  int8_t weights[lanes][step_channels];
};

struct alignas(32) StartVector {
  int16_t words[lanes];
};

// Output channels of one group that are computed together.
struct Span {
  int first, count;
  int vectors() const { return (count + lanes - 1) / lanes; }
};

// Cuts the output channels of a layer into spans of up to 64, each with as many vectors as possible.
std::vector<Span> cut_outputs(const Layer& layer);

// Number of steps for the channels of a group at one tap.
int steps_of(const Layer& layer);

// Conversion of sums to codes, for the loops: plain data, from the first channel on. In float32, if everything is exact up
// to the one rounding: rint((sum * factor + offset) * scale); else in integers: sum >> shift, * multiplier, + bias.
struct CodeMaker {
  const float *factors, *offsets, *scales;
  const int32_t *multipliers, *biases;
  bool in_float;
  int shift;
  int zero_point, low, high;
};

class Requantization {
 public:
  // The given sums are `1 << shift` times the true ones, less `missing` of each channel.
  Requantization(const Layer& layer, int shift, const std::vector<int64_t>& missing);
  CodeMaker of(int first_channel) const;
  size_t bytes() const { return scales_.size() * (3 * sizeof(float) + 2 * sizeof(int32_t)); }

 private:
  const Layer& layer_;
  const int shift_;
  bool in_float_ = true;
  std::vector<float> factors_, offsets_, scales_;  // of all channels, and some more
  std::vector<int32_t> multipliers_, biases_;
};

// The sum over an output channel's weights of magnitudes, times the largest input code: no sum is larger.
int64_t largest_sum(const Layer& layer, int output);

}  // namespace qil_deploy::channels_last
