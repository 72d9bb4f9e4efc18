// The shape of the loops in lookup.cpp, narrow.cpp and depthwise.cpp.
//
// A tile is four output pixels of up to four registers of output channels. Channels lie in the lanes, so that a map of
// 7x7 pixels wastes none. The input codes are stored channels last, in units that one step reads, with the padding around
// them: the steps of one row of the convolution's kernel are consecutive in memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "emptying.h"

namespace qil_deploy::neon {

constexpr int tile_pixels = 4;
constexpr int tile_registers = 4;
constexpr int lanes = 16;

// The output channels that a tile computes: all in one group of the convolution.
struct Block {
  int first_channel;
  int channels;
  int registers;
  size_t first_unit;             // of a pixel, at the start of its group
  bool adds_bytes = false;       // narrow.cpp: whether products are added in bytes first
  std::vector<Run> runs;
  std::vector<uint8_t> weights;  // [steps][registers][lanes]
};

// Adds up a tile. `pixels` are the units that the first tap of each pixel reads, `rows` where each row of the kernel
// begins, in bytes from there. `sums` is [tile_pixels][registers * channels of a register].
using AddTile = void(const Block& block, const uint8_t* const* pixels, const ptrdiff_t* rows, int32_t* sums);
AddTile add_lookup_tile;
AddTile add_narrow_tile;
AddTile add_depthwise_tile;

}  // namespace qil_deploy::neon
