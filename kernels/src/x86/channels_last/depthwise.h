// Depthwise layers with channels in the lanes: weights and the loop.
//
// A step multiplies the codes of 32 channels at two taps, interleaved, with their weights and adds the two products: sums of
// 16 bits, which is checked beforehand (c * sum of magnitudes <= 32767). Of 9 taps the tenth has weights of 0.
#pragma once

#include <string>

#include "blocks.h"

namespace qil_deploy::channels_last {

constexpr int depthwise_outputs = 32;

// Of channels 0-7 and 16-23, then of 8-15 and 24-31: the order in which bytes are interleaved.
struct TapPair {
  WeightVector weights[2];
};

constexpr int first_sum_of[depthwise_outputs / 8] = {0, 16, 8, 24};  // of channels 0-7, 8-15, 16-23, 24-31

struct DepthwiseWeights {
  explicit DepthwiseWeights(const Layer& layer);

  int pair_count;
  std::vector<TapPair> pairs;  // [vectors of 32 channels][pair_count]
};

std::string why_not_depthwise(const Layer& layer);

// Some neighbouring output pixels of 32 channels. Plain data.
struct DepthwiseChunk {
  const uint8_t* pixels[chunk_pixels];  // input of each one's first tap; the last is repeated
  int count;
  const int64_t* taps;  // offsets, in bytes
  int tap_count;
  const TapPair* pairs;
  CodeMaker code_maker;
  int channels;  // to store
  uint8_t* y;    // of the first channel and pixel
  size_t out_pixels;
};

void compute_depthwise(const DepthwiseChunk& chunk);

}  // namespace qil_deploy::channels_last
