// Weights for 3x3 convolutions of stride 1 by Winograd's algorithm F(2x2, 3x3), in integers.
//
// A tile of 2x2 outputs reads a patch d of 4x4 codes. Per input channel it takes 16 products in place of 36:
//
//   4 * outputs = A' [ (H g H') * (B' d B) ] A        ' : transposed, * : element by element, summed over input channels
//
//        1  0 -1  0          2  0  0                1  1  1  0
//   B' = 0  1  1  0      H = 1  1  1           A' = 0  1 -1 -1
//        0 -1  1  0          1 -1  1
//        0  1  0 -1          0  0  2
//
// H is twice the usual matrix, so that everything is an integer; the products of a tile are therefore 4 times too large,
// and their sums divide by 4 exactly.
//
// Bounds, for codes 0..c and weights -w..w:
//   - Of B' d B, 15 of 16 positions are differences, in [-2c, 2c], and position 5 is a sum, in [0, 4c]. Differences are
//     stored with 2c added: all are bytes of 0..4c.
//   - H g H' is at most 9w in magnitude, and a byte with a sign.
//   - Products of two channels are added to words of 16 bits, which wrap. A run of steps starts at -2c * (sum of its
//     weights); it then ends at sum of (byte - 2c) * weight, within 2c * (sum of magnitudes of weights), whatever wrapped
//     before. Runs are cut where that would pass 16 bits for any channel of a block.
//   - So what was added to differences is gone again. What remains is 2c * (sum of the channel's weights) at position 5,
//     that is 4q + r with r in 0..3: r is added where position 5 starts, q to the bias.
//   - The 16 sums of a tile are combined in 32 bits, then in float32: exact, as nothing there passes 2**24.
#pragma once

#include <string>
#include <vector>

#include "../lowbit_conv.h"

namespace qil_deploy::winograd {

constexpr int positions = 16;      // of a patch
constexpr int sum_position = 5;    // the one that is no difference
constexpr int step_channels = 2;   // input channels whose products one instruction adds up
constexpr int unrolled_steps = 4;  // runs are multiples of so many steps
constexpr int vector_outputs = 16;
constexpr int block_vectors = 4;
constexpr int block_outputs = block_vectors * vector_outputs;

struct alignas(32) WeightVector {
  int8_t weights[vector_outputs][step_channels];
};

struct alignas(32) StartVector {
  int16_t words[vector_outputs];
};

// What all positions have in common for 64 output channels or, in the last block, those that are left.
struct Block {
  int first_channel, channels;
  int vectors;                              // of 16 output channels
  std::vector<WeightVector> weights;        // [positions][steps][vectors]
  std::vector<uint16_t> run_steps;          // of all runs of all positions
  std::vector<StartVector> starts;          // [runs][vectors]
  std::vector<int> first_runs;              // [positions + 1]
  bool one_run_each() const { return run_steps.size() == positions; }
};

struct Weights {
  explicit Weights(const Layer& layer);
  size_t bytes() const;

  int steps;  // a multiple of `unrolled_steps`
  std::vector<Block> blocks;
  // Of each output channel, and some more: code = rint((sum * factors + offsets) * scales), of sums that are 4 times too
  // large.
  std::vector<float> factors, offsets, scales;
};

// Empty where the algorithm takes the layer; else why not.
std::string why_not(const Layer& layer);

}  // namespace qil_deploy::winograd
