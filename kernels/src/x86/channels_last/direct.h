// Convolutions of any shape with sums of 16 bits: weights and the loop.
//
// A step adds at most 2 * 15 * 7 = 210 to a word at 4 bits, so that 156 steps are safe for any weights; a thousand are usual
// by the bound on the actual weights: c * (sum of positive weights) <= 32767 and c * (sum of negative ones) >= -32768, for
// codes 0..c and each channel of a block. Where the next steps could pass that, words are added up in 32 bits.
#pragma once

#include <string>

#include "blocks.h"

namespace qil_deploy::channels_last {

// Some steps within one tap of the window, and whether words are emptied after them.
struct Stretch {
  int tap, first_step, steps;
  bool ends_run;
};

struct DirectBlock {
  Span outputs;
  std::vector<WeightVector> weights;  // [taps][steps][vectors]
  std::vector<Stretch> stretches;
  bool one_run;
};

std::vector<DirectBlock> direct_blocks(const Layer& layer);
std::string why_not_direct(const Layer& layer);

// Some neighbouring output pixels of a block. Plain data.
struct DirectChunk {
  const uint8_t* pixels[chunk_pixels];  // input of each one's first tap, in the block's group
  int count;
  const int64_t* taps;  // offsets of all taps, in bytes
  const WeightVector* weights;
  int vectors;
  const Stretch* stretches;
  int stretch_count;
  CodeMaker code_maker;
  int channels;  // to store
  uint8_t* y;    // of the first channel and pixel
  size_t out_pixels;
};

void compute_direct(const DirectChunk& chunk, bool one_run);

}  // namespace qil_deploy::channels_last
