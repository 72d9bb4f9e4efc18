// A layer's weights in the order of a kernel's steps.
#pragma once

#include <cstddef>
#include <vector>

#include "../lowbit_conv.h"
#include "pack.h"
#include "tile.h"

namespace qil_deploy::neon {

// Input of one step of a kernel, layout of its registers, and its loop.
struct Steps {
  int codes_per_unit;  // input codes of one pixel that a step reads
  int unit_bytes;
  int lanes_per_channel;
  AddTile* add_tile;
  uint8_t (*pack)(const PackedRow& row);
};

constexpr Steps lookup_steps{3, 1, 1, add_lookup_tile, pack_triples};
constexpr Steps narrow_steps{2, 2, 2, add_narrow_tile, pack_pairs};
constexpr Steps depthwise_steps{1, 1, 1, add_depthwise_tile, pack_singles};

struct OrderedWeights {
  const Steps* steps;
  int groups, channels_per_group, units_per_group;  // of the packed input
  int row_columns;  // columns of the convolution's kernel in one row of steps: all or 1
  std::vector<Block> blocks;

  size_t bytes() const;
};

// Steps go through the rows of the convolution's kernel, the columns of each, and the channels of each column, a unit at a
// time. If units do not lie in this order in memory (dilated columns, several groups), each column is a row of its own.
OrderedWeights order_for_lookup(const Layer& layer);
OrderedWeights order_for_narrow(const Layer& layer);

// One output channel of each input channel: a step is a tap of 16 channels.
OrderedWeights order_for_depthwise(const Layer& layer);

}  // namespace qil_deploy::neon
