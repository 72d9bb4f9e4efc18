// The patches of winograd_weights.h's algorithm, transformed.
//
// Channels lie in the lanes: one instruction for each addition of 32 channels, whatever the size of the map. A byte may wrap
// in between; the stored ones are 0..4c (winograd_weights.h).
#include <immintrin.h>

#include "winograd_loops.h"

namespace qil_deploy::channels_last {

namespace {

#pragma GCC push_options
#pragma GCC target("avx2,bmi,bmi2,fma")

inline __m256i load32(const uint8_t* bytes) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes)); }

inline void store32(uint8_t* bytes, __m256i vector) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(bytes), vector);
}

}  // namespace

__attribute__((noinline)) void transform_patches(const PatchRow& row) {
  const __m256i offset = _mm256_set1_epi8(char(row.offset));
  const uint8_t* pixels = row.pixels;
  uint8_t* cells = row.cells;
  for (int tile = 0; tile < row.tiles; tile++, pixels += 2 * row.pixel_bytes, cells += row.pixel_bytes) {
    for (int channel = 0; channel < row.pixel_bytes; channel += patch_channels) {
      __m256i d[4][4];  // rows are transformed when they are read
#pragma GCC unroll 4
      for (int x = 0; x < 4; x++) {
        const uint8_t* column = pixels + x * row.pixel_bytes + channel;
        const __m256i d0 = load32(column), d1 = load32(column + row.row_bytes);
        const __m256i d2 = load32(column + 2 * row.row_bytes), d3 = load32(column + 3 * row.row_bytes);
        d[0][x] = _mm256_sub_epi8(d0, d2);
        d[1][x] = _mm256_add_epi8(d1, d2);
        d[2][x] = _mm256_sub_epi8(d2, d1);
        d[3][x] = _mm256_sub_epi8(d1, d3);
      }
      uint8_t* to = cells + channel;
#pragma GCC unroll 4
      for (int y = 0; y < 4; y++, to += 4 * row.position_bytes) {
        const __m256i sum = _mm256_add_epi8(d[y][1], d[y][2]);
        store32(to, _mm256_add_epi8(_mm256_sub_epi8(d[y][0], d[y][2]), offset));
        store32(to + row.position_bytes, y == 1 ? sum : _mm256_add_epi8(sum, offset));
        store32(to + 2 * row.position_bytes, _mm256_add_epi8(_mm256_sub_epi8(d[y][2], d[y][1]), offset));
        store32(to + 3 * row.position_bytes, _mm256_add_epi8(_mm256_sub_epi8(d[y][1], d[y][3]), offset));
      }
    }
  }
}

#pragma GCC pop_options

}  // namespace qil_deploy::channels_last
