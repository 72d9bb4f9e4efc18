// Additions of codes, and codes on another grid, with AVX-512.
//
// 64 sums at a time. A shuffle within 16 bytes takes every fourth group of 4 codes apart into 32 bits, in the order in
// which two saturating packs put sums together again:
//
//   A[k], B[k] = 16 codes each as floats, codes 16 * lane + 4 * k + 0..3      k = 0..3: a shuffle and a conversion each
//   s[k]       = fma(A[k], a_ratio, fma(B[k], b_ratio, fixed))                2 fused multiply-adds
//   y          = pack(pack(rint s[0], rint s[1]), pack(rint s[2], rint s[3]))
//
// ONNX Runtime has vectors of half the length.
//
// A table of 256 codes is four registers: `vpermi2b` looks up in two of them by the lower 7 bits of a code, and the upper
// bit says which of two results it is.
#include <immintrin.h>

#include "spread.h"
#include "x86_kernels.h"

namespace qil_deploy {

namespace {

constexpr size_t vector_bytes = 64;

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,avx512vnni,bmi,bmi2,prefer-vector-width=512")

inline __mmask64 first_bytes(size_t count) { return count >= vector_bytes ? ~__mmask64{0} : (__mmask64{1} << count) - 1; }

inline __m512 floats_of(__m512i codes, int k) {
  return _mm512_cvtepi32_ps(_mm512_shuffle_epi8(codes, _mm512_load_si512(spread[k])));
}

inline __m512i add_vector(__m512i a, __m512i b, __m512 a_ratio, __m512 b_ratio, __m512 fixed) {
  __m512i sums[4];
  for (int k = 0; k < 4; k++) {
    const __m512 sum = _mm512_fmadd_ps(floats_of(b, k), b_ratio, fixed);
    sums[k] = _mm512_cvtps_epi32(_mm512_fmadd_ps(floats_of(a, k), a_ratio, sum));
  }
  return _mm512_packus_epi16(_mm512_packs_epi32(sums[0], sums[1]), _mm512_packs_epi32(sums[2], sums[3]));
}

void add(const Addition& addition, const uint8_t* a, const uint8_t* b, size_t count, uint8_t* y) {
  const __m512 a_ratio = _mm512_set1_ps(addition.a_ratio), b_ratio = _mm512_set1_ps(addition.b_ratio);
  const __m512 fixed = _mm512_set1_ps(addition.fixed);
  size_t i = 0;
  for (; i + vector_bytes <= count; i += vector_bytes) {
    const __m512i sums = add_vector(_mm512_loadu_si512(a + i), _mm512_loadu_si512(b + i), a_ratio, b_ratio, fixed);
    _mm512_storeu_si512(y + i, sums);
  }
  if (i == count) return;
  const __mmask64 rest = first_bytes(count - i);
  const __m512i last_a = _mm512_maskz_loadu_epi8(rest, a + i), last_b = _mm512_maskz_loadu_epi8(rest, b + i);
  _mm512_mask_storeu_epi8(y + i, rest, add_vector(last_a, last_b, a_ratio, b_ratio, fixed));
}

void look_up(const CodeTable& table, const uint8_t* x, size_t count, uint8_t* y) {
  __m512i quarters[4];
  for (int k = 0; k < 4; k++) quarters[k] = _mm512_load_si512(table.codes + k * vector_bytes);
  for (size_t i = 0; i < count; i += vector_bytes) {
    const __mmask64 mask = first_bytes(count - i);
    const __m512i codes = _mm512_maskz_loadu_epi8(mask, x + i);
    const __m512i lower = _mm512_permutex2var_epi8(quarters[0], codes, quarters[1]);
    const __m512i upper = _mm512_permutex2var_epi8(quarters[2], codes, quarters[3]);
    _mm512_mask_storeu_epi8(y + i, mask, _mm512_mask_blend_epi8(_mm512_movepi8_mask(codes), lower, upper));
  }
}

#pragma GCC pop_options

}  // namespace

const AddKernel add_avx512_kernel = {"sums in float (AVX-512)", add};
const RescaleKernel rescale_avx512_kernel = {"table (AVX-512 VBMI)", look_up};

}  // namespace qil_deploy
