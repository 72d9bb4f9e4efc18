// The products of winograd_weights.h's algorithm, and the codes from their sums.
//
// Output channels lie in the lanes, so that small maps waste none. A step broadcasts the transformed codes of 2 input
// channels of a tile, a word; `vpmaddubsw` multiplies it with the weights of 16 output channels, read from memory, and adds
// the two products; `vpaddw` adds them to words of 16 bits. With 3 tiles and 64 channels at once, 12 sums, a step is 27
// instructions for 384 products, which stand for 864 of the convolution. ONNX Runtime's AVX2 kernel takes 3 instructions
// for 32 products, and its loads.
//
// A chunk of 16 tiles goes through all positions, so that the weights of one position are read from the first cache but
// once. Its sums are then combined, 8 channels at a time, to 4 pixels each.
#include <immintrin.h>

#include <cstring>
#include <type_traits>

#include "winograd_avx2.h"

namespace qil_deploy::winograd {

namespace {

constexpr int positions = 16, unrolled_steps = 4, lanes = 16, step_bytes = 2, vector_bytes = 32;

#pragma GCC push_options
#pragma GCC target("avx2,bmi,bmi2,fma")

// sums += the products of a pair of cells, over a register, with pairs of weights. In assembler, because GCC 12 else keeps
// sums in memory.
inline void add_products(__m256i& sums, __m256i cells, const int8_t* weights) {
  __m256i products;
  __asm__("vpmaddubsw %3,%2,%1\n\tvpaddw %1,%0,%0"
          : "+x"(sums), "=&x"(products)
          : "x"(cells), "m"(*reinterpret_cast<const int8_t(*)[vector_bytes]>(weights)));
}

inline __m256i broadcast_pair(const uint8_t* cells) {
  __m256i pairs;
  __asm__("vpbroadcastw %1,%0" : "=x"(pairs) : "m"(*reinterpret_cast<const uint8_t(*)[step_bytes]>(cells)));
  return pairs;
}

// Sums of one run are kept in 16 bits; those of several are added up in 32.
template <bool wide>
using Sum = std::conditional_t<wide, int32_t, int16_t>;

template <bool wide, int V>
struct Sums {
  Sum<wide> of[positions][chunk_tiles][V * lanes];
};

inline void keep(int16_t* kept, __m256i sums, bool) { _mm256_store_si256(reinterpret_cast<__m256i*>(kept), sums); }

inline void keep(int32_t* kept, __m256i sums, bool first) {
  __m256i* to = reinterpret_cast<__m256i*>(kept);
  __m256i low = _mm256_cvtepi16_epi32(_mm256_castsi256_si128(sums));
  __m256i high = _mm256_cvtepi16_epi32(_mm256_extracti128_si256(sums, 1));
  if (!first) {
    low = _mm256_add_epi32(low, to[0]);
    high = _mm256_add_epi32(high, to[1]);
  }
  to[0] = low;
  to[1] = high;
}

inline __m256i load8(const int16_t* sums) {
  return _mm256_cvtepi16_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(sums)));
}

inline __m256i load8(const int32_t* sums) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(sums)); }

// T tiles at one position.
template <int T, int V, bool wide>
inline void multiply(const Chunk& chunk, int position, int tile, Sums<wide, V>& sums_of) {
  const uint8_t* cells = chunk.cells + position * chunk.position_bytes + tile * chunk.tile_bytes;
  const int8_t* weights = chunk.weights + size_t(position) * chunk.steps * (V * vector_bytes);
  const int first = chunk.first_runs[position], last = chunk.first_runs[position + 1];
  for (int run = first; run < last; run++) {
    const __m256i* starts = reinterpret_cast<const __m256i*>(chunk.starts) + run * V;
    __m256i sums[T][V];
#pragma GCC unroll 3
    for (int t = 0; t < T; t++) {
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) sums[t][v] = _mm256_load_si256(starts + v);
    }
    for (int left = chunk.run_steps[run]; left > 0; left -= unrolled_steps) {
#pragma GCC unroll 4
      for (int step = 0; step < unrolled_steps; step++) {
#pragma GCC unroll 3
        for (int t = 0; t < T; t++) {
          const __m256i pairs = broadcast_pair(cells + t * chunk.tile_bytes + step * step_bytes);
#pragma GCC unroll 4
          for (int v = 0; v < V; v++) add_products(sums[t][v], pairs, weights + (step * V + v) * vector_bytes);
        }
      }
      cells += unrolled_steps * step_bytes;
      weights += unrolled_steps * V * vector_bytes;
    }
#pragma GCC unroll 3
    for (int t = 0; t < T; t++) {
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) keep(&sums_of.of[position][tile + t][v * lanes], sums[t][v], run == first);
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

// The codes of 4 pixels of 8 channels: of each channel the upper two, then the lower two; channels 4-7 in the upper half.
inline __m256i codes_of(const Chunk& chunk, int channel, const __m256i* sums) {
  const __m256 factor = _mm256_loadu_ps(chunk.factors + channel), offset = _mm256_loadu_ps(chunk.offsets + channel);
  const __m256 scale = _mm256_loadu_ps(chunk.scales + channel);
  const __m256i zero_point = _mm256_set1_epi16(short(chunk.zero_point));
  __m256i rounded[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    const __m256 total = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[i]), factor, offset);
    rounded[i] = _mm256_cvtps_epi32(_mm256_mul_ps(total, scale));
  }
  const __m256i upper = _mm256_adds_epi16(_mm256_packs_epi32(rounded[0], rounded[1]), zero_point);
  const __m256i lower = _mm256_adds_epi16(_mm256_packs_epi32(rounded[2], rounded[3]), zero_point);
  const __m256i order = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  __m256i codes = _mm256_shuffle_epi8(_mm256_packus_epi16(upper, lower), order);
  codes = _mm256_max_epu8(codes, _mm256_set1_epi8(char(chunk.low)));
  return _mm256_min_epu8(codes, _mm256_set1_epi8(char(chunk.high)));
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

// What lies outside the output is left out.
inline void store_some(uint8_t* y, size_t out_pixels, int out_width, int channels, int rows, int columns, __m256i codes) {
  alignas(32) uint8_t all[8][2][2];
  _mm256_store_si256(reinterpret_cast<__m256i*>(all), codes);
  for (int c = 0; c < channels; c++, y += out_pixels) {
    for (int row = 0; row < rows; row++) {
      for (int column = 0; column < columns; column++) y[row * out_width + column] = all[c][row][column];
    }
  }
}

template <int V, bool wide>
inline void finish(const Chunk& chunk, const Sums<wide, V>& sums) {
  constexpr size_t stride = chunk_tiles * V * lanes;
  int row = chunk.first_tile / chunk.tile_columns * 2, column = chunk.first_tile % chunk.tile_columns * 2;
  for (int tile = 0; tile < chunk.tiles; tile++) {
    const int rows = chunk.out_height - row < 2 ? 1 : 2, columns = chunk.out_width - column < 2 ? 1 : 2;
    uint8_t* y = chunk.y + size_t(row) * chunk.out_width + column;
    for (int channel = 0; channel < chunk.channels; channel += 8, y += 8 * chunk.out_pixels) {
      __m256i outputs[4];
      combine(&sums.of[0][tile][channel], stride, outputs);
      const __m256i codes = codes_of(chunk, channel, outputs);
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

template <int V, bool wide>
__attribute__((noinline)) void compute(const Chunk& chunk) {
  alignas(32) Sums<wide, V> sums;
  for (int position = 0; position < positions; position++) {
    int tile = 0;
    // 3 tiles at once, but rather 2 and 2 than 3 and 1.
    for (; chunk.tiles - tile > 4 || chunk.tiles - tile == 3; tile += 3) multiply<3>(chunk, position, tile, sums);
    for (; chunk.tiles - tile >= 2; tile += 2) multiply<2>(chunk, position, tile, sums);
    if (tile < chunk.tiles) multiply<1>(chunk, position, tile, sums);
  }
  finish(chunk, sums);
}

#pragma GCC pop_options

}  // namespace

void compute_chunk(const Chunk& chunk, bool one_run_each) {
  static constexpr void (*narrow[])(const Chunk&) = {compute<1, false>, compute<2, false>, compute<3, false>,
                                                     compute<4, false>};
  static constexpr void (*wide[])(const Chunk&) = {compute<1, true>, compute<2, true>, compute<3, true>, compute<4, true>};
  (one_run_each ? narrow : wide)[chunk.vectors - 1](chunk);
}

}  // namespace qil_deploy::winograd
