// Weights for kernels that multiply: bytes, in the order of a cell's channels.
//
// For each block of 16 output channels and each step, 16 groups of `channels_per_cell` codes, one group per output channel.
// Sums of 16 bits are emptied before they could overflow: with input codes up to c, a run of steps lasts while
// c * (sum of positive codes) <= 32767 and c * (sum of negative ones) >= -32768 for each of two neighbouring channels. At 4
// bits, runs last a thousand weights.
#pragma once

#include "tiled_plan.h"

namespace qil_deploy {

class ProductWeights final : public TileWeights {
 public:
  ProductWeights(const Layer& layer, int channels_per_cell);

  // Weights are [steps, 16, channels_per_cell], from the first channel on. There are runs only for two outputs at once.
  void find(TileTask& task, int outputs, int index) const override;
  size_t bytes() const override { return weights_.size() + run_lengths_.size() * 2 + run_first_.size() * 4; }

 private:
  void find_runs(int capacity);

  int steps_, channels_per_cell_;
  std::vector<int8_t> weights_;
  std::vector<uint16_t> run_lengths_;  // of all pairs of channels
  std::vector<uint32_t> run_first_;    // [pairs + 1]
};

}  // namespace qil_deploy
