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
//   - So the offset of the differences cancels. The remainder is 2c * (sum of the channel's weights) at position 5,
//     that is 4q + r with r in 0..3: r is added where position 5 starts, q to the bias.
//   - The 16 sums of a tile are combined in 32 bits.
#pragma once

#include <string>

#include "winograd_loops.h"

namespace qil_deploy::channels_last {

constexpr int sum_position = 5;  // the one that is no difference

struct WinogradBlock {
  Span outputs;
  std::vector<WeightVector> weights;  // [positions][steps][vectors]
  std::vector<uint16_t> run_steps;    // of all runs of all positions
  std::vector<StartVector> starts;    // [runs][vectors]
  std::vector<int> first_runs;        // [positions + 1]
  bool one_run_each() const { return run_steps.size() == positions; }
};

std::vector<WinogradBlock> winograd_blocks(const Layer& layer);
Requantization winograd_requantization(const Layer& layer);

// Empty if the algorithm takes the layer, else the reason.
std::string why_not_winograd(const Layer& layer);

}  // namespace qil_deploy::channels_last
