// Additions of codes with AVX2: the algorithm of `addition_avx512.cpp` in vectors of half the length.
//
// ONNX Runtime's own kernel takes codes apart by unpacking and shifting, where one shuffle does for 8 codes: of 32 sums
// it needs 43 instructions beside loads and stores, this one 31.
#include <immintrin.h>

#include <cstring>

#include "spread.h"
#include "x86_kernels.h"

namespace qil_deploy {

namespace {

constexpr size_t vector_bytes = 32;

#pragma GCC push_options
#pragma GCC target("avx2,fma")

inline __m256 floats_of(__m256i codes, int k) {
  const __m256i source = _mm256_load_si256(reinterpret_cast<const __m256i*>(spread[k]));
  return _mm256_cvtepi32_ps(_mm256_shuffle_epi8(codes, source));
}

void add_vector(const Addition& addition, const uint8_t* a, const uint8_t* b, uint8_t* y) {
  const __m256 a_ratio = _mm256_set1_ps(addition.a_ratio), b_ratio = _mm256_set1_ps(addition.b_ratio);
  const __m256 fixed = _mm256_set1_ps(addition.fixed);
  const __m256i a_codes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a));
  const __m256i b_codes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b));
  __m256i sums[4];
  for (int k = 0; k < 4; k++) {
    const __m256 sum = _mm256_fmadd_ps(floats_of(b_codes, k), b_ratio, fixed);
    sums[k] = _mm256_cvtps_epi32(_mm256_fmadd_ps(floats_of(a_codes, k), a_ratio, sum));
  }
  const __m256i low = _mm256_packs_epi32(sums[0], sums[1]), high = _mm256_packs_epi32(sums[2], sums[3]);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(y), _mm256_packus_epi16(low, high));
}

void add(const Addition& addition, const uint8_t* a, const uint8_t* b, size_t count, uint8_t* y) {
  size_t i = 0;
  for (; i + vector_bytes <= count; i += vector_bytes) add_vector(addition, a + i, b + i, y + i);
  if (i == count) return;
  uint8_t rest[3][vector_bytes] = {};
  std::memcpy(rest[0], a + i, count - i);
  std::memcpy(rest[1], b + i, count - i);
  add_vector(addition, rest[0], rest[1], rest[2]);
  std::memcpy(y + i, rest[2], count - i);
}

void rescale(const CodeTable& table, const uint8_t* x, size_t count, uint8_t* y) {
  if (!table.is_counted) return look_up_one_by_one(table, x, count, y);
  const __m256i top = _mm256_set1_epi8(char(table.top));
  __m256i last[CodeTable::most_rises];
  for (int k = 0; k < CodeTable::most_rises; k++) last[k] = _mm256_set1_epi8(char(table.last[k]));
  size_t i = 0;
  for (; i + vector_bytes <= count; i += vector_bytes) {
    const __m256i codes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i));
    __m256i result = top;
    for (const __m256i& limit : last) {
      // -1 if a code is at most the limit
      result = _mm256_add_epi8(result, _mm256_cmpeq_epi8(_mm256_min_epu8(codes, limit), codes));
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(y + i), result);
  }
  look_up_one_by_one(table, x + i, count - i, y + i);
}

#pragma GCC pop_options

}  // namespace

const AddKernel add_avx2_kernel = {"sums in float (AVX2)", add};
const RescaleKernel rescale_avx2_kernel = {"counted steps (AVX2)", rescale};

}  // namespace qil_deploy
