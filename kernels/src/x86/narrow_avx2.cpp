// Narrow accumulators for weights and codes of few bits, with AVX2.
//
// A cell is 2 bytes: codes of 2 channels. `vpmaddubsw` multiplies 16 cells with the 2 weights of an output channel and adds
// each pair, to words of 16 bits. An int8 kernel has to widen them to 32 bits at once (vpmaddwd, vpaddd); here products are
// so small that many fit: at 4 bits a step adds at most 15 * 7 * 2 = 210, so that 156 steps (312 products a sum) are safe for
// any weights, and, by the bound on the actual weights of product_weights.h, a thousand are usual. So a step is 2 instructions
// for 32 products instead of 3. After each run of steps the words are added to sums of 32 bits.
//
// A vector is 32 pixels, two registers R; 2 output channels are computed at once: R loads of cells, 2 broadcasts of weights,
// 2 * R multiplications and additions. With R = 6 the sums take 12 of the 16 registers.
#include <immintrin.h>

#include <cstring>

#include "product_weights.h"
#include "x86_kernels.h"

namespace qil_deploy {

namespace {

constexpr int outputs = 2;

#pragma GCC push_options
#pragma GCC target("avx2,bmi,bmi2,fma")

#include "avx2_output.h"

// sums += the products of 16 cells with a pair of weights. In assembler, because GCC 12 else keeps sums in memory.
inline void add_products(__m256i& sums, __m256i cells, __m256i weights) {
  __m256i products;
  __asm__("vpmaddubsw %3,%2,%1\n\tvpaddw %1,%0,%0"
          : "+x"(sums), "=&x"(products)
          : "x"(cells), "x"(weights));
}

inline __m256i broadcast_pair(const uint8_t* weights) {
  __m256i pairs;
  __asm__("vpbroadcastw %1,%0" : "=x"(pairs) : "m"(*reinterpret_cast<const uint8_t(*)[2]>(weights)));
  return pairs;
}

template <int V>
__attribute__((noinline)) void run_tile(const TileTask& task) {
  constexpr int R = 2 * V;
  __m256i totals[outputs][R][2];  // of pixels 0-7 and 8-15 of each register
  std::memset(totals, 0, sizeof totals);
  const uint8_t* weights = task.weights;
  const int32_t* offset = task.offsets;
  for (int run = 0; run < task.run_count; run++) {
    __m256i sums[outputs][R];
#pragma GCC unroll 6
    for (int i = 0; i < R; i++) sums[0][i] = sums[1][i] = _mm256_setzero_si256();
    for (int step = task.runs[run]; step > 0; step--, weights += block_outputs * 2) {
      const uint8_t* cells = task.cells + *offset++;
      const __m256i w0 = broadcast_pair(weights), w1 = broadcast_pair(weights + 2);
#pragma GCC unroll 6
      for (int i = 0; i < R; i++) {
        const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(cells + 32 * i));
        add_products(sums[0][i], x, w0);
        add_products(sums[1][i], x, w1);
      }
    }
#pragma GCC unroll 2
    for (int n = 0; n < outputs; n++) {
#pragma GCC unroll 6
      for (int i = 0; i < R; i++) {
        const __m256i first = _mm256_cvtepi16_epi32(_mm256_castsi256_si128(sums[n][i]));
        const __m256i second = _mm256_cvtepi16_epi32(_mm256_extracti128_si256(sums[n][i], 1));
        totals[n][i][0] = _mm256_add_epi32(totals[n][i][0], first);
        totals[n][i][1] = _mm256_add_epi32(totals[n][i][1], second);
      }
    }
  }
  for (int n = 0; n < task.outputs; n++) {
    for (int v = 0; v < V; v++) {
      const __m256i* total = totals[n][2 * v];
      alignas(32) uint8_t codes[32];
      _mm256_store_si256(reinterpret_cast<__m256i*>(codes), codes_of(task, n, total));
      store_masked(task.y + size_t(n) * task.out_pixels + task.ranks[v], codes, task.masks[v]);
    }
  }
}

uint8_t pack_rows(const uint8_t* const* channels, int channel_count, int rows, size_t row_step, int width_left, int stride,
                  int count, int pitch, uint8_t* cells) {
  const uint8_t *c0 = channels[0], *c1 = channels[channel_count > 1 ? 1 : 0];
  const uint8_t has1 = channel_count > 1 ? 255 : 0;
  const __m128i has1_vector = _mm_set1_epi8(char(has1)), low_bytes = _mm_set1_epi16(255);
  const auto load = [](const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); };
  __m128i vector_bits = _mm_setzero_si128();
  uint8_t bits = 0;
  for (int row = 0; row < rows; row++, c0 += row_step, c1 += row_step, cells += size_t(pitch) * 2) {
    int i = 0;
    __m128i* target = reinterpret_cast<__m128i*>(cells);
    if (stride == 1) {
      for (; i + 16 <= count; i += 16, target += 2) {
        const __m128i a = load(c0 + i), b = _mm_and_si128(has1_vector, load(c1 + i));
        vector_bits = _mm_or_si128(vector_bits, _mm_or_si128(a, b));
        _mm_storeu_si128(target, _mm_unpacklo_epi8(a, b));
        _mm_storeu_si128(target + 1, _mm_unpackhi_epi8(a, b));
      }
    } else if (stride == 2) {
      for (; i + 8 <= count && 2 * i + 16 <= width_left; i += 8, target++) {
        const __m128i a = _mm_and_si128(low_bytes, load(c0 + 2 * i));
        const __m128i b = _mm_slli_epi16(_mm_and_si128(has1_vector, load(c1 + 2 * i)), 8);
        const __m128i pairs = _mm_or_si128(a, b);
        vector_bits = _mm_or_si128(vector_bits, pairs);
        _mm_storeu_si128(target, pairs);
      }
    }
    for (; i < count; i++) {
      const size_t p = size_t(i) * stride;
      cells[2 * i] = c0[p];
      cells[2 * i + 1] = c1[p] & has1;
      bits |= cells[2 * i] | cells[2 * i + 1];
    }
    std::memset(cells + 2 * size_t(count), 0, size_t(pitch - count) * 2);
  }
  return bits | or_bytes(_mm256_zextsi128_si256(vector_bits));
}

#pragma GCC pop_options

constexpr TiledKernel kernel = {
    {2, 2, 32},
    pack_rows,
    {{outputs, run_tile<1>}, {outputs, run_tile<2>}, {outputs, run_tile<3>}},
};

// Emptying runs of fewer than 8 steps would cost more than it gains.
std::string why_not(const Layer& layer) {
  if (layer.groups > 1 && layer.outputs_per_group() < 4) return "fewer than 4 output channels in a group";
  const int step = 2 * layer.input_capacity * layer.largest_code;
  if (8 * step > 32767) return "a step of up to " + std::to_string(step) + ", it takes 4095";
  return "";
}

}  // namespace

const Kernel narrow_avx2_kernel = {
    "narrow accumulators (AVX2)",
    why_not,
    [](const Layer& layer) -> std::unique_ptr<PackedLayer> {
      auto weights = std::make_unique<ProductWeights>(layer, 2);
      return std::make_unique<TiledLayer>(layer, kernel, std::move(weights));
    },
};

}  // namespace qil_deploy
