// The lookup kernel for small maps: vectors of output channels instead of pixels.
#pragma once

#include "lookup_weights.h"

namespace qil_deploy {

constexpr int wide_outputs = 128;  // of one block: two vectors

// Whether the layer is faster this way at this size. Measured on Zen 5: 7x7 maps 1.5 times as fast, 14x14 1.1 times, 28x28
// no faster.
bool wide_is_faster(const Layer& layer, int height, int width);

// Patterns of blocks of 128 output channels, and the constants of requantization, in the order of its vectors.
class WideWeights {
 public:
  explicit WideWeights(const Layer& layer);

  struct Outputs {  // of 64 channels: channels 4i, 4i + 2, 4i + 1, 4i + 3 in four vectors
    alignas(64) int32_t multipliers[4][16];  // in the lower, the upper, the lower, the upper word
    alignas(64) int32_t bias[4][16];
    alignas(64) float scales[4][16];
  };

  int blocks_per_group, steps;
  std::vector<uint8_t> patterns;      // [blocks, steps, 128], from the first address that 64 divides
  std::vector<Outputs> outputs;       // [blocks, 2]
  std::vector<uint16_t> run_lengths;  // of all blocks
  std::vector<uint32_t> run_first;    // [blocks + 1]
  const uint8_t* aligned_patterns() const {
    return patterns.data() + (-reinterpret_cast<uintptr_t>(patterns.data()) & 63);
  }
  size_t bytes() const { return patterns.size() + outputs.size() * sizeof(Outputs) + run_lengths.size() * 2; }
};

// Null if offsets do not fit. The weights outlive the plan.
std::unique_ptr<Plan> make_wide_plan(const Layer& layer, const WideWeights& weights, PackRows pack_rows, int height,
                                     int width);

}  // namespace qil_deploy
