// The products of winograd_weights.h's algorithm, and the codes from their sums.
//
// With 3 tiles and 64 output channels at once, 12 sums, a step is 27 instructions for 384 products (direct_avx2.cpp), which
// stand for 864 of the convolution.
//
// A chunk of 16 tiles goes through all positions, so that the weights of one position are read from the first cache only
// once. Its sums are then combined, 8 channels at a time, to 4 pixels each.
#include <immintrin.h>

#include <cstring>
#include <type_traits>

#include "winograd_weights.h"

namespace qil_deploy::channels_last {

namespace {

#pragma GCC push_options
#pragma GCC target("avx2,bmi,bmi2,fma")

#include "loops_avx2.h"

template <int V, typename Sum>
struct Sums {
  Sum of[positions][chunk_pixels][V * lanes];
};

// T tiles at one position. Not inlined: GCC 12 would then keep sums in memory.
template <int T, int V, typename Sum>
__attribute__((noinline)) void multiply(const WinogradChunk& chunk, int position, int tile, Sums<V, Sum>& kept) {
  const uint8_t* cells = chunk.cells + position * chunk.position_bytes + tile * chunk.tile_bytes;
  const WeightVector* weights = chunk.weights + size_t(position) * chunk.steps * V;
  const int first = chunk.first_runs[position], last = chunk.first_runs[position + 1];
  for (int run = first; run < last; run++) {
    const int steps = chunk.run_steps[run];
    const __m256i* starts = reinterpret_cast<const __m256i*>(&chunk.starts[run * V]);
    const uint8_t* tiles[T];
    __m256i sums[T][V];
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) {
      tiles[t] = cells + t * chunk.tile_bytes;
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) sums[t][v] = _mm256_load_si256(starts + v);
    }
    add_steps(sums, tiles, weights, steps);
    cells += steps * step_channels;
    weights += steps * V;
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) {
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) keep(&kept.of[position][tile + t][v * lanes], sums[t][v], run == first);
    }
  }
}

// Of 8 channels, the sums at the 16 positions -> 4 times the outputs, in rows.
template <typename Sum>
inline void combine(const Sum* sums, size_t stride, __m256i* outputs) {
  __m256i rows[2][4];
#pragma GCC unroll 4
  for (int x = 0; x < 4; x++) {
    const __m256i s0 = load8(sums + x * stride), s1 = load8(sums + (4 + x) * stride);
    const __m256i s2 = load8(sums + (8 + x) * stride), s3 = load8(sums + (12 + x) * stride);
    rows[0][x] = _mm256_add_epi32(s0, _mm256_add_epi32(s1, s2));
    rows[1][x] = _mm256_sub_epi32(_mm256_sub_epi32(s1, s2), s3);
  }
#pragma GCC unroll 2
  for (int y = 0; y < 2; y++) {
    const __m256i* s = rows[y];
    outputs[2 * y] = _mm256_add_epi32(s[0], _mm256_add_epi32(s[1], s[2]));
    outputs[2 * y + 1] = _mm256_sub_epi32(_mm256_sub_epi32(s[1], s[2]), s[3]);
  }
}

template <int lane>
inline void store_pair(uint8_t* y, __m128i codes) {
  const uint16_t pair = uint16_t(_mm_extract_epi16(codes, lane));
  std::memcpy(y, &pair, 2);
}

// Both rows of 4 channels.
inline void store_channels(uint8_t* y, size_t out_pixels, int out_width, __m128i codes) {
  uint8_t* below = y + out_width;
  store_pair<0>(y, codes);
  store_pair<1>(below, codes);
  store_pair<2>(y + out_pixels, codes);
  store_pair<3>(below + out_pixels, codes);
  store_pair<4>(y + 2 * out_pixels, codes);
  store_pair<5>(below + 2 * out_pixels, codes);
  store_pair<6>(y + 3 * out_pixels, codes);
  store_pair<7>(below + 3 * out_pixels, codes);
}

// Pixels outside the output are left out.
inline void store_some(uint8_t* y, size_t out_pixels, int out_width, int channels, int rows, int columns, __m256i codes) {
  alignas(32) uint8_t all[8][2][2];
  _mm256_store_si256(reinterpret_cast<__m256i*>(all), codes);
  for (int c = 0; c < channels; c++, y += out_pixels) {
    for (int row = 0; row < rows; row++) {
      for (int column = 0; column < columns; column++) y[row * out_width + column] = all[c][row][column];
    }
  }
}

template <int V, typename Sum>
inline void finish(const WinogradChunk& chunk, const Sums<V, Sum>& sums) {
  constexpr size_t stride = chunk_pixels * V * lanes;
  int row = chunk.first_tile / chunk.tile_columns * 2, column = chunk.first_tile % chunk.tile_columns * 2;
  for (int tile = 0; tile < chunk.tiles; tile++) {
    const int rows = chunk.out_height - row < 2 ? 1 : 2, columns = chunk.out_width - column < 2 ? 1 : 2;
    uint8_t* y = chunk.y + size_t(row) * chunk.out_width + column;
    for (int channel = 0; channel < chunk.channels; channel += 8, y += 8 * chunk.out_pixels) {
      __m256i outputs[4];
      combine(&sums.of[0][tile][channel], stride, outputs);
      const __m256i codes = codes_of(chunk.code_maker, channel, outputs);
      const int count = chunk.channels - channel;
      if (rows == 2 && columns == 2 && count >= 8) {
        store_channels(y, chunk.out_pixels, chunk.out_width, _mm256_castsi256_si128(codes));
        store_channels(y + 4 * chunk.out_pixels, chunk.out_pixels, chunk.out_width, _mm256_extracti128_si256(codes, 1));
      } else {
        store_some(y, chunk.out_pixels, chunk.out_width, count < 8 ? count : 8, rows, columns, codes);
      }
    }
    column += 2;
    if (column >= chunk.out_width) {
      column = 0;
      row += 2;
    }
  }
}

template <int V, typename Sum>
__attribute__((noinline)) void compute(const WinogradChunk& chunk) {
  alignas(32) Sums<V, Sum> sums;
  for (int position = 0; position < positions; position++) {
    for_groups<V>(chunk.tiles, [&](auto tiles, int first) { multiply<tiles>(chunk, position, first, sums); });
  }
  finish(chunk, sums);
}

#pragma GCC pop_options

}  // namespace

void compute_winograd(const WinogradChunk& chunk, bool one_run_each) {
  static constexpr void (*narrow[])(const WinogradChunk&) = {compute<1, int16_t>, compute<2, int16_t>, compute<3, int16_t>,
                                                             compute<4, int16_t>};
  static constexpr void (*wide[])(const WinogradChunk&) = {compute<1, int32_t>, compute<2, int32_t>, compute<3, int32_t>,
                                                           compute<4, int32_t>};
  (one_run_each ? narrow : wide)[chunk.vectors - 1](chunk);
}

}  // namespace qil_deploy::channels_last
