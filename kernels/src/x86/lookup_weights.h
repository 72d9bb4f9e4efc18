// Ternary weights as patterns for lookup, packed alike for every processor.
//
// A cell holds codes 0..3 of `channels` channels, two bits each, the first channel lowest: it is an index into a table of
// 4**channels sums. A pattern is the weights of these channels at one tap, as a number in base 3 (digit 0: -1, 1: 0, 2: 1);
// pattern p has its own table, sum over channels of digit * code. So one step of the convolution is one byte per output
// channel (3 channels: 27 patterns, 2.7 bits a weight) and one table lookup per cell.
//
// Sums run in bytes, and are emptied into 16 bits before any could overflow. The weights determine when: over a run of
// steps no sum passes 127 or -128 while 3 * (number of +1) <= 127 and 3 * (number of -1) <= 128 for each channel of the
// block. Runs end with the fullest channel; for random ternary weights they last some 30 steps.
#pragma once

#include <string>
#include <vector>

#include "tiled_plan.h"

namespace qil_deploy {

// One step of one output channel: the number of its pattern, and the most that it adds and takes away.
struct Step {
  uint8_t pattern, positive, negative;
};

// The step of output channel o that reads channels [first, first + channels) of its group at a tap.
Step lookup_step(const Layer& layer, int o, int first, int channels, int tap);

// Cuts steps into runs that no sum of `outputs` neighbouring channels overflows. steps_of_block: [steps, row] from the first
// of these channels on.
void cut_runs(const Step* steps_of_block, int steps, int row, int outputs, std::vector<uint16_t>& lengths);

// Empty if a kernel that computes blocks of output channels, with sums in 16 bits, can take the layer; else the reason.
std::string why_not_blocks(const Layer& layer);

// Empty if the layer has ternary weights, codes 0..3, sums that fit, and enough outputs to fill blocks; else the reason.
std::string why_not_lookup(const Layer& layer);

class LookupWeights final : public TileWeights {
 public:
  // unit: the factor on a stored pattern's number, so that it addresses its table.
  LookupWeights(const Layer& layer, int channels, int unit);

  // Weights are [steps, 16] patterns, from the first channel on.
  void find(TileTask& task, int outputs, int index) const override;
  size_t bytes() const override;

 private:
  struct Runs {  // of all blocks of so many outputs
    std::vector<uint16_t> lengths;
    std::vector<uint32_t> first;  // [blocks + 1]
  };

  int steps_;                      // for one group of the convolution
  std::vector<uint8_t> patterns_;  // [groups * blocks of 16 outputs, steps, 16]; padding is the pattern of zeros
  Runs runs_[4];                   // of 2, 4, 8, 16 outputs
};

}  // namespace qil_deploy
