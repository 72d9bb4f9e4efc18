// The loop of depthwise.h: for 4 pixels at once, for each pair of taps, a load, 2 instructions that interleave, 2
// `vpmaddubsw` and 2 `vpaddw`, 64 products.
#include <immintrin.h>

#include <cstring>
#include <type_traits>

#include "depthwise.h"

namespace qil_deploy::channels_last {

namespace {

#pragma GCC push_options
#pragma GCC target("avx2,bmi,bmi2,fma")

#include "loops_avx2.h"

constexpr int pixels_together = 4;

inline __m256i load(const uint8_t* codes) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes)); }

// Not inlined: GCC 12 may then keep sums in memory.
__attribute__((noinline)) void multiply(const DepthwiseChunk& chunk, const uint8_t* const* pixels,
                                        int16_t (*kept)[depthwise_outputs]) {
  __m256i sums[pixels_together][2] = {};
  const TapPair* pair = chunk.pairs;
  for (int tap = 0; tap < chunk.tap_count; tap += 2, pair++) {
    const int64_t first = chunk.taps[tap], second = chunk.taps[tap + 1 < chunk.tap_count ? tap + 1 : tap];
#pragma GCC unroll 4
    for (int p = 0; p < pixels_together; p++) {
      const __m256i a = load(pixels[p] + first), b = load(pixels[p] + second);
      add_products(sums[p][0], _mm256_unpacklo_epi8(a, b), &pair->weights[0]);
      add_products(sums[p][1], _mm256_unpackhi_epi8(a, b), &pair->weights[1]);
    }
  }
#pragma GCC unroll 4
  for (int p = 0; p < pixels_together; p++) {
    keep(kept[p], sums[p][0], true);
    keep(kept[p] + lanes, sums[p][1], true);
  }
}

__attribute__((noinline)) void compute(const DepthwiseChunk& chunk) {
  alignas(32) int16_t sums[chunk_pixels][depthwise_outputs];
  for (int first = 0; first < chunk.count; first += pixels_together) multiply(chunk, chunk.pixels + first, sums + first);
  write_codes(chunk.code_maker, chunk.channels, chunk.count, chunk.y, chunk.out_pixels, depthwise_outputs,
              [&](int eighth) { return &sums[0][first_sum_of[eighth]]; });
}

#pragma GCC pop_options

}  // namespace

void compute_depthwise(const DepthwiseChunk& chunk) { compute(chunk); }

}  // namespace qil_deploy::channels_last
