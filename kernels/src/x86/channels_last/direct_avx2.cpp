// The loop of direct.h. With 64 output channels and 3 pixels at once, 12 sums, a step is 3 broadcasts of codes, 12
// `vpmaddubsw` with weights from memory and 12 `vpaddw`: 27 instructions for 384 products, where ONNX Runtime's AVX2 kernel
// takes 3 for 32, and its loads.
#include <immintrin.h>

#include <cstring>
#include <type_traits>

#include "direct.h"

namespace qil_deploy::channels_last {

namespace {

#pragma GCC push_options
#pragma GCC target("avx2,bmi,bmi2,fma")

#include "loops_avx2.h"

// Not inlined: GCC 12 may then keep sums in memory.
template <int P, int V, typename Sum>
__attribute__((noinline)) void multiply(const DirectChunk& chunk, int pixel, Sum (*kept)[V * lanes]) {
  const WeightVector* weights = chunk.weights;
  __m256i sums[P][V] = {};
  bool first = true;
  for (int i = 0; i < chunk.stretch_count; i++) {
    const Stretch& stretch = chunk.stretches[i];
    const int64_t offset = chunk.taps[stretch.tap] + stretch.first_step * step_channels;
    const uint8_t* pixels[P];
#pragma GCC unroll 8
    for (int p = 0; p < P; p++) pixels[p] = chunk.pixels[pixel + p] + offset;
    add_steps(sums, pixels, weights, stretch.steps);
    weights += stretch.steps * V;
    if (!stretch.ends_run) continue;
#pragma GCC unroll 8
    for (int p = 0; p < P; p++) {
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) {
        keep(&kept[pixel + p][v * lanes], sums[p][v], first);
        sums[p][v] = _mm256_setzero_si256();
      }
    }
    first = false;
  }
}

template <int V, typename Sum>
__attribute__((noinline)) void compute(const DirectChunk& chunk) {
  alignas(32) Sum sums[chunk_pixels][V * lanes];
  for_groups<V>(chunk.count, [&](auto pixels, int first) { multiply<pixels, V>(chunk, first, sums); });
  write_codes(chunk.code_maker, chunk.channels, chunk.count, chunk.y, chunk.out_pixels, V * lanes,
              [&](int eighth) { return &sums[0][8 * eighth]; });
}

#pragma GCC pop_options

}  // namespace

void compute_direct(const DirectChunk& chunk, bool one_run) {
  static constexpr void (*narrow[])(const DirectChunk&) = {compute<1, int16_t>, compute<2, int16_t>, compute<3, int16_t>,
                                                           compute<4, int16_t>};
  static constexpr void (*wide[])(const DirectChunk&) = {compute<1, int32_t>, compute<2, int32_t>, compute<3, int32_t>,
                                                         compute<4, int32_t>};
  (one_run ? narrow : wide)[chunk.vectors - 1](chunk);
}

}  // namespace qil_deploy::channels_last
