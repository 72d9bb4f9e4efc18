// Depthwise layers of at most 4 bits: 16 channels in the lanes, products added to 16 bits.
//
// Every tap of a tile of 4 pixels and 16 channels:
//
//     1 load of weights; for each pixel: load of codes, smlal, smlal2
//
// A byte holds codes and weights unchanged; no sum exceeds 32767, which is checked beforehand: 312 taps of 15 * 7.
#include <arm_neon.h>

#include "tile.h"

namespace qil_deploy::neon {

void add_depthwise_tile(const Block& block, const uint8_t* const* pixels, const ptrdiff_t* rows, int32_t* sums) {
  int16x8_t low[tile_pixels] = {}, high[tile_pixels] = {};
  const int8_t* weights = reinterpret_cast<const int8_t*>(block.weights.data());
  const size_t taps = block.runs.size();
  for (size_t tap = 0; tap < taps; tap++, weights += lanes) {
    const int8x16_t w = vld1q_s8(weights);
#pragma GCC unroll 4
    for (int p = 0; p < tile_pixels; p++) {
      const int8x16_t x = vreinterpretq_s8_u8(vld1q_u8(pixels[p] + rows[tap]));
      low[p] = vmlal_s8(low[p], vget_low_s8(x), vget_low_s8(w));
      high[p] = vmlal_high_s8(high[p], x, w);
    }
  }
#pragma GCC unroll 4
  for (int p = 0; p < tile_pixels; p++, sums += lanes) {
    vst1q_s32(sums, vmovl_s16(vget_low_s16(low[p])));
    vst1q_s32(sums + 4, vmovl_high_s16(low[p]));
    vst1q_s32(sums + 8, vmovl_s16(vget_low_s16(high[p])));
    vst1q_s32(sums + 12, vmovl_high_s16(high[p]));
  }
}

}  // namespace qil_deploy::neon
