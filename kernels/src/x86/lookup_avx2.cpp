// Lookup for ternary weights and codes 0..3, with the byte shuffles of AVX2.
//
// A cell is one byte: codes of 2 channels, two bits each. `vpshufb` takes 32 cells as indices into a pattern's table of 16
// sums (bytes from -6 to 6), which fills half a register and is loaded twice: 64 products in one instruction, added in one
// more, where an int8 kernel without dot-product instructions takes three instructions for 32. The 9 tables take 144 bytes.
// lookup_weights.h says how patterns are packed and when byte sums are emptied.
//
// A step, for V vectors of cells and N output channels, is N loads of tables, V loads of cells and V * N shuffles and
// additions. V is at most 6, and V * N at most 12, so that all sums stay in the 16 registers.
//
// Emptying is that of lookup_avx512.cpp: words += sums as 16 bits, odd += sums >> 8.
#include <immintrin.h>

#include <cstring>

#include "lookup_weights.h"
#include "x86_kernels.h"

namespace qil_deploy {

namespace {

struct Tables {
  alignas(16) int8_t sums[9][16];
  constexpr Tables() : sums{} {
    for (int pattern = 0; pattern < 9; pattern++) {
      for (int cell = 0; cell < 16; cell++) {
        sums[pattern][cell] = int8_t((pattern % 3 - 1) * (cell & 3) + (pattern / 3 - 1) * (cell >> 2));
      }
    }
  }
};
constexpr Tables tables;
constexpr int pattern_unit = 16;  // bytes of a table

#pragma GCC push_options
#pragma GCC target("avx2,bmi,bmi2,fma")

#include "avx2_output.h"

inline __m256i load(const uint8_t* bytes) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes)); }

// 8 sums (the lower or, with the multiplier shifted, the upper words of 16) -> rounded results.
inline __m256i rounded(__m256i words, __m256i multiplier, __m256i bias, __m256 scale) {
  const __m256i sums = _mm256_add_epi32(_mm256_madd_epi16(words, multiplier), bias);
  return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_cvtepi32_ps(sums), scale));
}

// The codes of 32 pixels of one channel.
inline __m256i codes_of(const TileTask& task, int channel, __m256i words, __m256i odd) {
  const __m256i even = _mm256_sub_epi16(words, _mm256_slli_epi16(odd, 8));
  const int32_t m = task.multipliers[channel];
  // A multiplier of 128 fits the word of a vector; shifted, it takes the upper word of each pair.
  const __m256i lower = _mm256_set1_epi32(m), upper = _mm256_set1_epi32(m << 16);
  const __m256i bias = _mm256_set1_epi32(task.bias[channel]);
  const __m256 scale = _mm256_set1_ps(task.scales[channel]);
  const __m256i zero_point = _mm256_set1_epi16(short(task.zero_point));
  const __m256i first = _mm256_adds_epi16(
      _mm256_packs_epi32(rounded(even, lower, bias, scale), rounded(even, upper, bias, scale)), zero_point);
  const __m256i second = _mm256_adds_epi16(
      _mm256_packs_epi32(rounded(odd, lower, bias, scale), rounded(odd, upper, bias, scale)), zero_point);
  const __m256i order = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 8, 4, 12, 1, 9, 5, 13, 2, 10, 6, 14, 3, 11, 7, 15));
  return clipped(_mm256_shuffle_epi8(_mm256_packus_epi16(first, second), order), task);
}

// sums += the table's sums for 32 cells. In assembler, because GCC 12 else keeps sums in memory.
inline void add_looked_up(__m256i& sums, __m256i table, __m256i cells) {
  __m256i looked_up;
  __asm__("vpshufb %3,%2,%1\n\tvpaddb %1,%0,%0"
          : "+x"(sums), "=&x"(looked_up)
          : "x"(table), "x"(cells));
}

template <int V, int N>
__attribute__((noinline)) void run_tile(const TileTask& task) {
  __m256i words[N][V], odd[N][V];
  const int start = -128 * task.run_count;
  for (int n = 0; n < N; n++) {
    for (int i = 0; i < V; i++) {
      words[n][i] = _mm256_set1_epi16(short(start * 257));
      odd[n][i] = _mm256_set1_epi16(short(start));
    }
  }
  const uint8_t* patterns = task.weights;
  const int32_t* offset = task.offsets;
  const int8_t* sums_of_patterns = tables.sums[0];
  for (int run = 0; run < task.run_count; run++) {
    __m256i sums[N][V];
#pragma GCC unroll 4
    for (int n = 0; n < N; n++) {
#pragma GCC unroll 6
      for (int i = 0; i < V; i++) sums[n][i] = _mm256_set1_epi8(char(0x80));
    }
    for (int step = task.runs[run]; step > 0; step--, patterns += block_outputs) {
      const uint8_t* cells = task.cells + *offset++;
      __m256i table[N];
#pragma GCC unroll 4
      for (int n = 0; n < N; n++) {
        table[n] = _mm256_broadcastsi128_si256(
            _mm_load_si128(reinterpret_cast<const __m128i*>(sums_of_patterns + patterns[n])));
      }
#pragma GCC unroll 6
      for (int i = 0; i < V; i++) {
        const __m256i x = load(cells + 32 * i);
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) add_looked_up(sums[n][i], table[n], x);
      }
    }
#pragma GCC unroll 4
    for (int n = 0; n < N; n++) {
#pragma GCC unroll 6
      for (int i = 0; i < V; i++) {
        words[n][i] = _mm256_add_epi16(words[n][i], sums[n][i]);
        odd[n][i] = _mm256_add_epi16(odd[n][i], _mm256_srli_epi16(sums[n][i], 8));
      }
    }
  }
  for (int n = 0; n < task.outputs; n++) {
    uint8_t* target = task.y + size_t(n) * task.out_pixels;
    for (int v = 0; v < V; v++) {
      alignas(32) uint8_t codes[32];
      _mm256_store_si256(reinterpret_cast<__m256i*>(codes), codes_of(task, n, words[n][v], odd[n][v]));
      store_masked(target + task.ranks[v], codes, task.masks[v]);
    }
  }
}

// Of 64 bytes, those at even places.
inline __m256i load_even(const uint8_t* bytes) {
  const __m256i low_bytes = _mm256_set1_epi16(255);
  const __m256i first = _mm256_and_si256(load(bytes), low_bytes), second = _mm256_and_si256(load(bytes + 32), low_bytes);
  return _mm256_permute4x64_epi64(_mm256_packus_epi16(first, second), 0xd8);
}

// Writes one row with stride 1 or 2, as many cells as whole vectors of the source allow; returns how many.
inline int pack_vectors(const uint8_t* c0, const uint8_t* c1, __m256i has1, int width_left, int stride, int count,
                        uint8_t* cells, __m256i& bits) {
  int i = 0;
  for (; i + 32 <= count && (i + 32) * stride <= width_left; i += 32) {
    const __m256i a = stride == 1 ? load(c0 + i) : load_even(c0 + 2 * i);
    const __m256i b = _mm256_and_si256(has1, stride == 1 ? load(c1 + i) : load_even(c1 + 2 * i));
    bits = _mm256_or_si256(bits, _mm256_or_si256(a, b));
    // Codes above 3 corrupt their neighbours here; `bits` reveals that, and the plan is given up.
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(cells + i), _mm256_or_si256(a, _mm256_slli_epi16(b, 2)));
  }
  return i;
}

uint8_t pack_rows(const uint8_t* const* channels, int channel_count, int rows, size_t row_step, int width_left, int stride,
                  int count, int pitch, uint8_t* cells) {
  const uint8_t *c0 = channels[0], *c1 = channels[channel_count > 1 ? 1 : 0];
  const uint8_t has1 = channel_count > 1 ? 255 : 0;
  const __m256i has1_vector = _mm256_set1_epi8(char(has1));
  __m256i vector_bits = _mm256_setzero_si256();
  uint8_t bits = 0;
  for (int row = 0; row < rows; row++, c0 += row_step, c1 += row_step, cells += pitch) {
    int i = stride > 2 ? 0 : pack_vectors(c0, c1, has1_vector, width_left, stride, count, cells, vector_bits);
    for (; i < count; i++) {
      const size_t p = size_t(i) * stride;
      const uint8_t a = c0[p], b = c1[p] & has1;
      bits |= a | b;
      cells[i] = uint8_t(a | b << 2);
    }
    std::memset(cells + count, 0, size_t(pitch - count));
  }
  return bits | or_bytes(vector_bits);
}

#pragma GCC pop_options

constexpr TiledKernel kernel = {
    {2, 1, 32},
    pack_rows,
    {{4, run_tile<1, 4>},
     {4, run_tile<2, 4>},
     {2, run_tile<3, 2>},
     {2, run_tile<4, 2>},
     {2, run_tile<5, 2>},
     {2, run_tile<6, 2>}},
};

}  // namespace

const Kernel lookup_avx2_kernel = {
    "lookup (AVX2)",
    why_not_lookup,
    [](const Layer& layer) -> std::unique_ptr<PackedLayer> {
      return std::make_unique<TiledLayer>(layer, kernel, std::make_unique<LookupWeights>(layer, 2, pattern_unit));
    },
};

}  // namespace qil_deploy
