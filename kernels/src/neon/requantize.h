// Conversion of a tile's sums to codes, as `qil_deploy::requantize` does for one sum.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "../lowbit_conv.h"

namespace qil_deploy::neon {

class Requantization {
 public:
  explicit Requantization(const Layer& layer);

  // `sums` is [4][stride]; writes, for each of `channels` from `first`, the codes of `pixels` (up to 4) side by side to
  // `out`, where channels are `plane` bytes apart.
  void run(const int32_t* sums, int stride, int first, int channels, int pixels, uint8_t* out, size_t plane) const;

 private:
  // Per output channel, and some zeros past the last, which a register may read.
  std::vector<int32_t> multipliers_, bias_;
  std::vector<float> scales_;
  int16_t zero_point_;
  uint8_t low_, high_;
};

}  // namespace qil_deploy::neon
