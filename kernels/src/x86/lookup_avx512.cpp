// Lookup for ternary weights and codes 0..3, with the byte permutes of AVX-512 VBMI.
//
// A cell is one byte: codes of 3 channels, two bits each. `vpermb` takes 64 cells as indices into a pattern's table of 64
// sums (bytes from -9 to 9), which fills one register: 192 products in one instruction, added in one more. The 27 tables
// take 1.7 KB and stay in the first cache. lookup_weights.h says how patterns are packed and when byte sums are emptied.
//
// A step, for V vectors of cells and N output channels:
//
//   x[i] = 64 cells at the step's offset        V loads, used N times
//   t    = table of the channel's pattern       N loads, used V times
//   a[n][i] += permute(t, x[i])                 V * N permutes and additions
//
// V * N is 12 or 16, the sums of a tile then stay in registers. Both instructions issue twice a cycle on Zen 4 and 5, so the
// loop is bound by permutes at 384 products a cycle if the loads keep up: patterns are fetched several at a time, and their
// numbers come multiplied by 8 so that one scaled address finds the table. The order of instructions matters as much:
// compilers put each addition right after its permute, which fills the schedulers with waiting additions; the additions
// of one channel belong after the permutes of the next. Hence the two lines of assembler.
//
// Sums start at 128, as unsigned bytes. Emptying adds a register as 32 words to `words` (which wraps) and its upper bytes to
// `odd`: in the end the sums of odd pixels are `odd`, those of even ones are words - 256 * odd, both modulo 2**16, and the
// true sums fit 16 bits (sums_too_large).
#include <immintrin.h>

#include <cstring>
#include <mutex>

#include "lookup_wide_avx512.h"
#include "x86_kernels.h"

namespace qil_deploy {

namespace {

struct Tables {
  alignas(64) int8_t sums[27][64];
  constexpr Tables() : sums{} {
    for (int pattern = 0; pattern < 27; pattern++) {
      const int weights[3] = {pattern % 3 - 1, pattern / 3 % 3 - 1, pattern / 9 - 1};
      for (int cell = 0; cell < 64; cell++) {
        sums[pattern][cell] =
            int8_t(weights[0] * (cell & 3) + weights[1] * (cell >> 2 & 3) + weights[2] * (cell >> 4 & 3));
      }
    }
  }
};
constexpr Tables tables;
constexpr int pattern_unit = 8;  // 64 bytes of a table, by an address that multiplies with 8

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,avx512vnni,bmi,bmi2,prefer-vector-width=512")

inline __m512i permuted(const void* table, __m512i cells) {
  __m512i sums;
  __asm__ volatile("vpermb %2,%1,%0" : "=v"(sums) : "v"(cells), "m"(*static_cast<const __m512i*>(table)));
  return sums;
}

inline __m512i permuted(__m512i table, __m512i cells) {
  __m512i sums;
  __asm__ volatile("vpermb %2,%1,%0" : "=v"(sums) : "v"(cells), "v"(table));
  return sums;
}

inline void add(__m512i& sum, __m512i value) { __asm__ volatile("vpaddb %1,%0,%0" : "+v"(sum) : "v"(value)); }

// 32 sums -> two vectors of int32 (even, odd words) -> rounded results.
inline __m512i rounded(__m512i words, __m512i multiplier, __m512i bias, __m512 scale) {
  return _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_dpwssd_epi32(bias, words, multiplier)), scale));
}

// Stores one channel's codes of one vector. `words` and `odd` as the head of this file says.
inline void store(const TileTask& task, int channel, int vector, __m512i words, __m512i odd) {
  const __m512i even = _mm512_sub_epi16(words, _mm512_slli_epi16(odd, 8));
  const int32_t m = task.multipliers[channel];
  const __m512i lower = _mm512_set1_epi32(m), upper = _mm512_set1_epi32(m << 16);
  const __m512i bias = _mm512_set1_epi32(task.bias[channel]);
  const __m512 scale = _mm512_set1_ps(task.scales[channel]);
  const __m512i zero_point = _mm512_set1_epi16(short(task.zero_point));
  const __m512i first = _mm512_adds_epi16(
      _mm512_packs_epi32(rounded(even, lower, bias, scale), rounded(even, upper, bias, scale)), zero_point);
  const __m512i second = _mm512_adds_epi16(
      _mm512_packs_epi32(rounded(odd, lower, bias, scale), rounded(odd, upper, bias, scale)), zero_point);
  const __m512i order =
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, 8, 4, 12, 1, 9, 5, 13, 2, 10, 6, 14, 3, 11, 7, 15));
  __m512i codes = _mm512_shuffle_epi8(_mm512_packus_epi16(first, second), order);
  codes = _mm512_max_epu8(codes, _mm512_set1_epi8(char(task.low)));
  codes = _mm512_min_epu8(codes, _mm512_set1_epi8(char(task.high)));
  const int count = task.ranks[vector + 1] - task.ranks[vector];
  const __mmask64 stored = count == 64 ? ~0ull : (1ull << count) - 1;
  uint8_t* target = task.y + size_t(channel) * task.out_pixels + task.ranks[vector];
  _mm512_mask_storeu_epi8(target, stored, _mm512_maskz_compress_epi8(task.masks[vector], codes));
}

template <int V, int N>
__attribute__((noinline)) void run_tile(const TileTask& task) {
  alignas(64) int16_t words[N][V][32], odd[N][V][32];
  const int start = -128 * task.run_count;
  for (int n = 0; n < N; n++) {
    for (int i = 0; i < V; i++) {
      _mm512_store_si512(words[n][i], _mm512_set1_epi16(short(start * 257)));
      _mm512_store_si512(odd[n][i], _mm512_set1_epi16(short(start)));
    }
  }
  const uint8_t* patterns = task.weights;
  const int32_t* offset = task.offsets;
  const int8_t* sums_of_patterns = tables.sums[0];
  for (int run = 0; run < task.run_count; run++) {
    __m512i sums[N][V];
#pragma GCC unroll 16
    for (int n = 0; n < N; n++) {
#pragma GCC unroll 4
      for (int i = 0; i < V; i++) sums[n][i] = _mm512_set1_epi8(char(0x80));
    }
    for (int step = task.runs[run]; step > 0; step--, patterns += 16) {
      const uint8_t* cells = task.cells + *offset++;
      __m512i x[V], t[N + 1][V];
#pragma GCC unroll 4
      for (int i = 0; i < V; i++) x[i] = _mm512_loadu_si512(cells + 64 * i);
      uint64_t numbers[2] = {0, 0};
      std::memcpy(numbers, patterns, N);
#pragma GCC unroll 17
      for (int n = 0; n <= N; n++) {
        if (n < N) {
          const int8_t* table = sums_of_patterns + (numbers[n / 8] >> 8 * (n % 8) & 255) * (64 / pattern_unit);
          if (V == 1) {
            t[n][0] = permuted(static_cast<const void*>(table), x[0]);
          } else {
            const __m512i loaded = _mm512_load_si512(table);
#pragma GCC unroll 4
            for (int i = 0; i < V; i++) t[n][i] = permuted(loaded, x[i]);
          }
        }
        if (n > 0) {
#pragma GCC unroll 4
          for (int i = 0; i < V; i++) add(sums[n - 1][i], t[n - 1][i]);
        }
      }
    }
#pragma GCC unroll 16
    for (int n = 0; n < N; n++) {
#pragma GCC unroll 4
      for (int i = 0; i < V; i++) {
        __m512i* word = reinterpret_cast<__m512i*>(words[n][i]);
        __m512i* upper = reinterpret_cast<__m512i*>(odd[n][i]);
        *word = _mm512_add_epi16(*word, sums[n][i]);
        *upper = _mm512_add_epi16(*upper, _mm512_srli_epi16(sums[n][i], 8));
      }
    }
  }
  for (int n = 0; n < task.outputs; n++) {
    for (int i = 0; i < V; i++) store(task, n, i, _mm512_load_si512(words[n][i]), _mm512_load_si512(odd[n][i]));
  }
}

inline __mmask64 first_bytes(int count) { return count >= 64 ? ~0ull : count <= 0 ? 0 : (1ull << count) - 1; }

uint8_t pack_rows(const uint8_t* const* channels, int channel_count, int rows, size_t row_step, int width_left, int stride,
                  int count, int pitch, uint8_t* cells) {
  const uint8_t *c0 = channels[0], *c1 = channels[channel_count > 1 ? 1 : 0], *c2 = channels[channel_count > 2 ? 2 : 0];
  const __mmask64 has1 = channel_count > 1 ? ~0ull : 0, has2 = channel_count > 2 ? ~0ull : 0;
  uint8_t scalar_bits = 0;
  __m512i bits = _mm512_setzero_si512();
  alignas(64) uint8_t even_bytes[64];
  for (int i = 0; i < 64; i++) even_bytes[i] = uint8_t(2 * i & 63);
  const __m512i even = _mm512_load_si512(even_bytes);
  for (int row = 0; row < rows; row++, c0 += row_step, c1 += row_step, c2 += row_step, cells += pitch) {
    if (stride > 2) {
      for (int i = 0; i < pitch; i++) {
        const size_t p = size_t(i) * stride;
        const uint8_t a = i < count ? c0[p] : 0, b = i < count && has1 ? c1[p] : 0, c = i < count && has2 ? c2[p] : 0;
        scalar_bits |= a | b | c;
        cells[i] = uint8_t(a | b << 2 | c << 4);
      }
      continue;
    }
    const int cells_at_once = 64 / stride;
    for (int i = 0; i < pitch; i += cells_at_once) {
      const __mmask64 pixels = first_bytes(stride == 1 ? count - i : width_left - 2 * i);
      __m512i a = _mm512_maskz_loadu_epi8(pixels, c0 + size_t(i) * stride);
      __m512i b = _mm512_maskz_loadu_epi8(pixels & has1, c1 + size_t(i) * stride);
      __m512i c = _mm512_maskz_loadu_epi8(pixels & has2, c2 + size_t(i) * stride);
      if (stride == 2) {
        const __mmask64 wanted = first_bytes(count - i) & 0xffffffff;
        a = _mm512_maskz_permutexvar_epi8(wanted, even, a);
        b = _mm512_maskz_permutexvar_epi8(wanted, even, b);
        c = _mm512_maskz_permutexvar_epi8(wanted, even, c);
      }
      bits = _mm512_ternarylogic_epi32(_mm512_or_si512(bits, a), b, c, 0xfe);
      // Codes above 3 corrupt their neighbours here; `bits` reveals that, and the plan is given up.
      const __m512i packed = _mm512_ternarylogic_epi32(a, _mm512_slli_epi16(b, 2), _mm512_slli_epi16(c, 4), 0xfe);
      _mm512_mask_storeu_epi8(cells + i, first_bytes(pitch - i) & first_bytes(cells_at_once), packed);
    }
  }
  alignas(64) uint8_t seen[64];
  _mm512_store_si512(seen, bits);
  for (uint8_t byte : seen) scalar_bits |= byte;
  return scalar_bits;
}

#pragma GCC pop_options

constexpr TiledKernel kernel = {
    {3, 1, 64},
    pack_rows,
    {{16, run_tile<1, 16>}, {8, run_tile<2, 8>}, {4, run_tile<3, 4>}, {4, run_tile<4, 4>}},
};

// Weights are packed when a size of input first needs their form: few layers ever need both.
class LookupLayer final : public PackedLayer {
 public:
  explicit LookupLayer(const Layer& layer) : layer_(layer) {}

  std::unique_ptr<Plan> plan(int height, int width) const override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (wide_is_faster(layer_, height, width)) {
      if (!wide_) wide_ = std::make_unique<WideWeights>(layer_);
      return make_wide_plan(layer_, *wide_, pack_rows, height, width);
    }
    if (!weights_) weights_ = std::make_unique<LookupWeights>(layer_, 3, pattern_unit);
    auto plan = std::make_unique<TiledPlan>(layer_, kernel, *weights_, height, width);
    return plan->fits() ? std::move(plan) : nullptr;
  }

  size_t weight_bytes() const override {
    const std::lock_guard<std::mutex> lock(mutex_);
    return (weights_ ? weights_->bytes() : 0) + (wide_ ? wide_->bytes() : 0);
  }

 private:
  const Layer& layer_;
  mutable std::mutex mutex_;
  mutable std::unique_ptr<LookupWeights> weights_;
  mutable std::unique_ptr<WideWeights> wide_;
};

}  // namespace

const Kernel lookup_avx512_kernel = {
    "lookup (AVX-512 VBMI)",
    why_not_lookup,
    [](const Layer& layer) -> std::unique_ptr<PackedLayer> { return std::make_unique<LookupLayer>(layer); },
};

}  // namespace qil_deploy
