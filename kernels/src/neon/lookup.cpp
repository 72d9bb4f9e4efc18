// Ternary weights over codes 0..3: a byte shuffle looks up the sum of three products.
//
// Three codes make an index of 6 bits, which picks one of 64 tables; three weights of {-1, 0, 1} make one of 27, which
// picks the entry: the sum of their products, -9..9. A table fills two registers, so `tbl` with a pair of registers looks
// up 16 output channels at once. One step of a tile of 4 pixels and 64 channels:
//
//     4 loads of weights; for each pixel: index, table's address, table (a pair), 4 tbl, 4 add
//
// 48 instructions for 768 products, where umull, umlal2, uadalp of an 8-bit kernel take 56 for 256. Bytes are emptied
// before a lane could pass -128 or 127: every 14 steps at the least, every 25 or so with random weights.
#include <arm_neon.h>

#include "tile.h"

namespace qil_deploy::neon {
namespace {

struct Tables {
  alignas(64) int8_t entries[64][32];
};

constexpr Tables make_tables() {
  Tables tables{};
  for (int codes = 0; codes < 64; codes++)
    for (int weights = 0; weights < 27; weights++)
      tables.entries[codes][weights] = static_cast<int8_t>((weights % 3 - 1) * (codes & 3) +
                                                           (weights / 3 % 3 - 1) * (codes >> 2 & 3) +
                                                           (weights / 9 - 1) * (codes >> 4));
  return tables;
}

constexpr Tables tables = make_tables();

template <int registers>
void add_tile(const Block& block, const uint8_t* const* pixels, const ptrdiff_t* rows, int32_t* sums) {
  constexpr int channels = 16 * registers;
  int8x16_t bytes[tile_pixels][registers] = {};
  int16_t words[tile_pixels * channels] = {};
  for (int i = 0; i < tile_pixels * channels; i++) sums[i] = 0;
  const uint8_t* weights = block.weights.data();
  for (const Run& run : block.runs) {
    const ptrdiff_t offset = rows[run.row] + run.first;
    const uint8_t* codes[tile_pixels];
#pragma GCC unroll 4
    for (int p = 0; p < tile_pixels; p++) codes[p] = pixels[p] + offset;
    for (int32_t step = 0; step < run.steps; step++) {
      uint8x16_t w[registers];
#pragma GCC unroll 4
      for (int v = 0; v < registers; v++) w[v] = vld1q_u8(weights + 16 * v);
      weights += channels;
#pragma GCC unroll 4
      for (int p = 0; p < tile_pixels; p++) {
        const int8x16x2_t table = vld1q_s8_x2(tables.entries[codes[p][step]]);
#pragma GCC unroll 4
        for (int v = 0; v < registers; v++) bytes[p][v] = vaddq_s8(bytes[p][v], vqtbl2q_s8(table, w[v]));
      }
    }
    if (run.empties == Empties::nothing) continue;
#pragma GCC unroll 4
    for (int p = 0; p < tile_pixels; p++)
#pragma GCC unroll 4
      for (int v = 0; v < registers; v++) {
        int16_t* word = words + p * channels + 16 * v;
        vst1q_s16(word, vaddw_s8(vld1q_s16(word), vget_low_s8(bytes[p][v])));
        vst1q_s16(word + 8, vaddw_high_s8(vld1q_s16(word + 8), bytes[p][v]));
        bytes[p][v] = vdupq_n_s8(0);
      }
    if (run.empties == Empties::bytes) continue;
    for (int i = 0; i < tile_pixels * channels; i++) {
      sums[i] += words[i];
      words[i] = 0;
    }
  }
}

}  // namespace

void add_lookup_tile(const Block& block, const uint8_t* const* pixels, const ptrdiff_t* rows, int32_t* sums) {
  static constexpr decltype(&add_tile<1>) tiles[] = {add_tile<1>, add_tile<2>, add_tile<3>, add_tile<4>};
  tiles[block.registers - 1](block, pixels, rows, sums);
}

}  // namespace qil_deploy::neon
