// Dot products for every other layer, with AVX-512 VNNI: what runs beside the lookup kernel in files of mixed bits.
//
// It is about as fast as ONNX Runtime's own int8 convolution, which uses the same instruction, and takes every weight and
// every input code: a node that was registered cannot go back to ONNX Runtime's kernels. Only groups of very few channels
// are left to the scalar kernel.
//
// A cell is 4 bytes: codes of 4 channels. `vpdpbusd` multiplies the cells of 16 pixels with the 4 weights of one output
// channel and adds all to 16 sums of 32 bits, which wrap as the definition's do. A step, for V vectors and N channels, is V
// loads of cells, N broadcasts of 4 weights and V * N of these instructions.
#include <immintrin.h>

#include <cstring>

#include "product_weights.h"
#include "x86_kernels.h"

namespace qil_deploy {

namespace {

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,avx512vnni,bmi,bmi2,prefer-vector-width=512")

inline void store(const TileTask& task, int channel, int vector, __m512i sum) {
  const __m512 value = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_add_epi32(sum, _mm512_set1_epi32(task.bias[channel]))),
                                     _mm512_set1_ps(task.scales[channel]));
  // Kept inside what saturation to 0..255 needs, so that rounding to int32 cannot overflow.
  const __m512 bounded =
      _mm512_min_ps(_mm512_max_ps(value, _mm512_set1_ps(-1024.0f)), _mm512_set1_ps(1024.0f));
  __m512i code = _mm512_add_epi32(_mm512_cvtps_epi32(bounded), _mm512_set1_epi32(task.zero_point));
  code = _mm512_min_epi32(_mm512_max_epi32(code, _mm512_setzero_si512()), _mm512_set1_epi32(255));
  code = _mm512_max_epi32(code, _mm512_set1_epi32(task.low));
  code = _mm512_min_epi32(code, _mm512_set1_epi32(task.high));
  const int count = task.ranks[vector + 1] - task.ranks[vector];
  uint8_t* target = task.y + size_t(channel) * task.out_pixels + task.ranks[vector];
  const __m128i kept = _mm_maskz_compress_epi8(__mmask16(task.masks[vector]), _mm512_cvtepi32_epi8(code));
  _mm_mask_storeu_epi8(target, __mmask16((1u << count) - 1), kept);
}

template <int V, int N>
__attribute__((noinline)) void run_tile(const TileTask& task) {
  __m512i sums[N][V];
#pragma GCC unroll 16
  for (int n = 0; n < N; n++) {
#pragma GCC unroll 4
    for (int i = 0; i < V; i++) sums[n][i] = _mm512_setzero_si512();
  }
  const uint8_t* weights = task.weights;
  for (int step = 0; step < task.steps; step++, weights += block_outputs * 4) {
    const uint8_t* cells = task.cells + task.offsets[step];
    __m512i x[V];
#pragma GCC unroll 4
    for (int i = 0; i < V; i++) x[i] = _mm512_loadu_si512(cells + 64 * i);
#pragma GCC unroll 16
    for (int n = 0; n < N; n++) {
      int32_t four;
      std::memcpy(&four, weights + 4 * n, 4);
      const __m512i w = _mm512_set1_epi32(four);
#pragma GCC unroll 4
      for (int i = 0; i < V; i++) sums[n][i] = _mm512_dpbusd_epi32(sums[n][i], x[i], w);
    }
  }
#pragma GCC unroll 16
  for (int n = 0; n < N; n++) {
    if (n >= task.outputs) break;
#pragma GCC unroll 4
    for (int i = 0; i < V; i++) store(task, n, i, sums[n][i]);
  }
}

uint8_t pack_rows(const uint8_t* const* channels, int channel_count, int rows, size_t row_step, int width_left, int stride,
                  int count, int pitch, uint8_t* cells) {
  (void)width_left;
  uint8_t bits = 0;
  for (int row = 0; row < rows; row++) {
    const uint8_t* source[4];
    for (int k = 0; k < 4; k++) source[k] = channels[k < channel_count ? k : 0] + row * row_step;
    int i = 0;
    if (stride == 1 && channel_count == 4) {
      __m128i seen = _mm_setzero_si128();
      for (; i + 16 <= count; i += 16, cells += 64) {
        const auto load = [&](int k) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(source[k] + i)); };
        const __m128i a = load(0), b = load(1), c = load(2), d = load(3);
        seen = _mm_or_si128(seen, _mm_or_si128(_mm_or_si128(a, b), _mm_or_si128(c, d)));
        const __m128i ab = _mm_unpacklo_epi8(a, b), cd = _mm_unpacklo_epi8(c, d);
        const __m128i ab2 = _mm_unpackhi_epi8(a, b), cd2 = _mm_unpackhi_epi8(c, d);
        __m128i* target = reinterpret_cast<__m128i*>(cells);
        _mm_storeu_si128(target, _mm_unpacklo_epi16(ab, cd));
        _mm_storeu_si128(target + 1, _mm_unpackhi_epi16(ab, cd));
        _mm_storeu_si128(target + 2, _mm_unpacklo_epi16(ab2, cd2));
        _mm_storeu_si128(target + 3, _mm_unpackhi_epi16(ab2, cd2));
      }
      uint8_t bytes[16];
      _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes), seen);
      for (uint8_t byte : bytes) bits |= byte;
    }
    for (; i < count; i++, cells += 4) {
      for (int k = 0; k < 4; k++) {
        cells[k] = k < channel_count ? source[k][size_t(i) * stride] : 0;
        bits |= cells[k];
      }
    }
    std::memset(cells, 0, size_t(pitch - count) * 4);
    cells += size_t(pitch - count) * 4;
  }
  return bits;
}

#pragma GCC pop_options

constexpr TiledKernel kernel = {
    {4, 4, 16},
    pack_rows,
    {{16, run_tile<1, 16>}, {8, run_tile<2, 8>}, {4, run_tile<3, 4>}, {4, run_tile<4, 4>}},
};

}  // namespace

const Kernel dot_avx512_kernel = {
    "dot product (AVX-512 VNNI)",
    [](const Layer& layer) -> std::string {
      return layer.groups > 1 && layer.outputs_per_group() < 4 ? "fewer than 4 output channels in a group" : "";
    },
    [](const Layer& layer) -> std::unique_ptr<PackedLayer> {
      auto weights = std::make_unique<ProductWeights>(layer, 4, ProductWeights::Of::weights);
      return std::make_unique<TiledLayer>(layer, kernel, std::move(weights));
    },
};

}  // namespace qil_deploy
