// A layer's weights, in the order of the steps of a kernel.
#pragma once

#include <cstddef>
#include <vector>

#include "../lowbit_conv.h"
#include "tile.h"

namespace qil_deploy::neon {

// What one step reads and how its registers are laid out.
struct StepShape {
  bool by_lookup;          // ternary weights, three in a byte
  int codes_per_unit;      // input codes of one pixel that a step reads
  int unit_bytes;
  int lanes_per_channel;
};

constexpr StepShape lookup_steps{true, 3, 1, 1};
constexpr StepShape narrow_steps{false, 2, 2, 2};

// Steps go through the rows of the convolution's kernel, the columns of each, and the channels of each column, a unit at a
// time. Where that is not how units lie in memory (dilated columns, several groups), each column is a row of its own.
struct OrderedWeights {
  StepShape shape;
  int units_per_group;
  int row_columns;  // columns of the convolution's kernel in one row: all or 1
  std::vector<Block> blocks;

  size_t bytes() const;
};

OrderedWeights order_weights(const Layer& layer, const StepShape& shape);

}  // namespace qil_deploy::neon
