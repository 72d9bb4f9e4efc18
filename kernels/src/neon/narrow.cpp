// Weights and codes of at most 4 bits: products that fit a byte, summed in bytes or in 16 bits.
//
// A step reads two codes of a pixel, neighbours in memory, and repeats them over a register; the weights of 8 output
// channels lie opposite, two a channel. `mul` gives 16 products of 8 bits, which are exact as long as no weight times the
// largest code passes 127 (15 * 7 = 105). Then one of two loops, whichever takes fewer instructions for these weights:
//
//     in words   mul, sadalp             each lane's pair is added to the channel's 16-bit sum at once
//     in bytes   mla ... mla; sadalp     pairs are added when a byte could pass its limits: at 3 bits every 6 steps at
//                                        the least (6 * 21 = 126), every 16 or so with random weights
//
// One step of a tile of 4 pixels and 32 channels takes 40 and 24 instructions, for 256 products, where umull, umlal2,
// uadalp of an 8-bit kernel take 56. 16-bit sums are emptied into 32 bits in time, which is rare.
#include <arm_neon.h>

#include "tile.h"

namespace qil_deploy::neon {
namespace {

constexpr int unit = 2;

// Two codes, over a register, and on to the next two: one instruction, of which compilers make three.
inline int8x16_t take_codes(const uint8_t*& codes) {
  int8x16_t repeated;
  __asm__("ld1r {%0.8h}, [%1], #2" : "=w"(repeated), "+r"(codes) : "m"(*reinterpret_cast<const uint8_t(*)[unit]>(codes)));
  return repeated;
}

template <int registers, bool in_bytes>
void add_tile(const Block& block, const uint8_t* const* pixels, const ptrdiff_t* rows, int32_t* sums) {
  constexpr int channels = 8 * registers;
  int8x16_t bytes[tile_pixels][registers] = {};
  int16x8_t words[tile_pixels][registers] = {};
  for (int i = 0; i < tile_pixels * channels; i++) sums[i] = 0;
  const int8_t* weights = reinterpret_cast<const int8_t*>(block.weights.data());
  for (const Run& run : block.runs) {
    const ptrdiff_t offset = rows[run.row] + run.first * unit;
    const uint8_t* codes[tile_pixels];
#pragma GCC unroll 4
    for (int p = 0; p < tile_pixels; p++) codes[p] = pixels[p] + offset;
    for (int32_t step = 0; step < run.steps; step++) {
      int8x16_t x[tile_pixels];
#pragma GCC unroll 4
      for (int p = 0; p < tile_pixels; p++) x[p] = take_codes(codes[p]);
#pragma GCC unroll 4
      for (int v = 0; v < registers; v++) {
        const int8x16_t w = vld1q_s8(weights + 16 * v);
#pragma GCC unroll 4
        for (int p = 0; p < tile_pixels; p++)
          if (in_bytes)
            bytes[p][v] = vmlaq_s8(bytes[p][v], x[p], w);
          else
            words[p][v] = vpadalq_s8(words[p][v], vmulq_s8(x[p], w));
      }
      weights += 16 * registers;
    }
    if (run.empties == Empties::nothing) continue;
    if (in_bytes)
#pragma GCC unroll 4
      for (int p = 0; p < tile_pixels; p++)
#pragma GCC unroll 4
        for (int v = 0; v < registers; v++) {
          words[p][v] = vpadalq_s8(words[p][v], bytes[p][v]);
          bytes[p][v] = vdupq_n_s8(0);
        }
    if (run.empties == Empties::bytes) continue;
#pragma GCC unroll 4
    for (int p = 0; p < tile_pixels; p++)
#pragma GCC unroll 4
      for (int v = 0; v < registers; v++) {
        int32_t* sum = sums + p * channels + 8 * v;
        vst1q_s32(sum, vaddw_s16(vld1q_s32(sum), vget_low_s16(words[p][v])));
        vst1q_s32(sum + 4, vaddw_high_s16(vld1q_s32(sum + 4), words[p][v]));
        words[p][v] = vdupq_n_s16(0);
      }
  }
}

}  // namespace

void add_narrow_tile(const Block& block, const uint8_t* const* pixels, const ptrdiff_t* rows, int32_t* sums) {
  static constexpr decltype(&add_tile<1, true>) tiles[2][tile_registers] = {
      {add_tile<1, false>, add_tile<2, false>, add_tile<3, false>, add_tile<4, false>},
      {add_tile<1, true>, add_tile<2, true>, add_tile<3, true>, add_tile<4, true>}};
  tiles[block.adds_bytes][block.registers - 1](block, pixels, rows, sums);
}

}  // namespace qil_deploy::neon
