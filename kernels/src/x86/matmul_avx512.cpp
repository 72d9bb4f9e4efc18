// Products of rows of codes and packed weights, with the dot products of AVX-512 VNNI.
//
// A byte holds 4 weights of 2 bits, or 2 of 4 bits. Nothing is unpacked: a mask keeps the weights of one place, unshifted,
// so that the byte is the stored weight times 1, 4, 16 or 64 (1 or 16), and `vpdpbusd` multiplies it, as an unsigned
// byte, by a code. Each place has sums of its own, which are divided by 4**place in the end, exactly: every summand is a
// multiple. Codes are arranged in the same way, those of one place of 64 bytes in one vector:
//
//   w          = 64 bytes of weights                          1 load
//   s[r][p]   += dot(w & mask[p], x[r][p])                    an AND and a dot product for each place, row of codes
//
// 256 products of 2 bits take 4 ANDs and 4 dot products, which issue twice a cycle on Zen 4 and 5: 128 products a cycle,
// as many as of 8 bits. But only a quarter of the bytes is read, and reading takes most of the time for one image. Rows of
// codes share the weights, four at a time if there are that many.
//
// A dot product adds four products to a sum of 32 bits without saturating. Four products of a place are 4 * 192 * 127 at
// most, and sums stay below 64 * 2**24 / 127 * 127 = 2**30: the node has refused rows whose sums could pass 2**24 before
// the factor.
#include <immintrin.h>

#include "x86_kernels.h"

namespace qil_deploy {

namespace {

constexpr int vector_bytes = 64;

size_t vectors_of(const MatMul& matmul) { return (matmul.weight_bytes() + vector_bytes - 1) / vector_bytes; }

size_t arranged_bytes(const MatMul& matmul) { return vectors_of(matmul) * matmul.per_byte() * vector_bytes; }

// Source of byte i of 64: the bytes of place p, 4j + p (2j + p), are made neighbours.
template <int P>
struct Order {
  alignas(64) uint8_t source[64];
  constexpr Order() : source{} {
    for (int i = 0; i < 64; i++) source[i] = uint8_t(i % (64 / P) * P + i / (64 / P));
  }
};
template <int P>
constexpr Order<P> order;

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,avx512vnni,bmi,bmi2,prefer-vector-width=512")

// Arranges 64 codes, the part-th of those that one vector of weights meets.
template <int P>
inline void store_places(__m512i codes, int part, int8_t* vector) {
  const __m512i sorted = _mm512_permutexvar_epi8(_mm512_load_si512(order<P>.source), codes);
  int8_t* target = vector + part * (64 / P);
  if constexpr (P == 4) {
    _mm_store_si128(reinterpret_cast<__m128i*>(target), _mm512_castsi512_si128(sorted));
    _mm_store_si128(reinterpret_cast<__m128i*>(target + 64), _mm512_extracti32x4_epi32(sorted, 1));
    _mm_store_si128(reinterpret_cast<__m128i*>(target + 128), _mm512_extracti32x4_epi32(sorted, 2));
    _mm_store_si128(reinterpret_cast<__m128i*>(target + 192), _mm512_extracti32x4_epi32(sorted, 3));
  } else {
    _mm256_store_si256(reinterpret_cast<__m256i*>(target), _mm512_castsi512_si256(sorted));
    _mm256_store_si256(reinterpret_cast<__m256i*>(target + 64), _mm512_extracti64x4_epi64(sorted, 1));
  }
}

inline __mmask64 first_bytes(size_t count) { return count >= 64 ? ~0ull : (1ull << count) - 1; }

template <int P>
RowSums arrange(const MatMul& matmul, const float* a, int8_t* arranged) {
  const __m512 limit = _mm512_set1_ps(127);
  __m512i sum = _mm512_setzero_si512(), magnitudes = sum;
  alignas(64) int8_t codes[64];
  bool exact = true;
  __m512 largest = _mm512_setzero_ps();
  const int sixteens = matmul.columns / 16, per_block = matmul.block / 16;
  const int padded = int(vectors_of(matmul)) * P * 4;  // of 16 codes, those of zeros included
  for (int i = 0; i < padded; i++) {
    __m512i integers = _mm512_setzero_si512();
    if (i < sixteens) {
      const __m512 values = _mm512_loadu_ps(a + 16 * i);
      const __m512 sizes = _mm512_abs_ps(values);
      integers = _mm512_cvtps_epi32(values);
      // Neither NaN nor infinity is at most 127.
      exact &= _mm512_cmp_ps_mask(_mm512_cvtepi32_ps(integers), values, _CMP_EQ_OQ) == 0xffff;
      exact &= _mm512_cmp_ps_mask(sizes, limit, _CMP_LE_OQ) == 0xffff;
      largest = _mm512_max_ps(largest, sizes);
      sum = _mm512_add_epi32(sum, integers);
      magnitudes = _mm512_add_epi32(magnitudes, _mm512_abs_epi32(integers));
      if ((i + 1) % per_block == 0) {
        exact &= _mm512_cmp_ps_mask(largest, limit, _CMP_EQ_OQ) != 0;
        largest = _mm512_setzero_ps();
      }
      if (!exact) return {false, 0, 0};
    }
    _mm_store_si128(reinterpret_cast<__m128i*>(codes + 16 * (i % 4)), _mm512_cvtepi32_epi8(integers));
    if (i % 4 == 3) store_places<P>(_mm512_load_si512(codes), i / 4 % P, arranged + size_t(i / 4 / P) * P * vector_bytes);
  }
  // 2**24 codes in 16 lanes: at most 2**20 * 127 in each.
  alignas(64) int32_t lanes[2][16];
  _mm512_store_si512(lanes[0], sum);
  _mm512_store_si512(lanes[1], magnitudes);
  RowSums found{true, 0, 0};
  for (int i = 0; i < 16; i++) {
    found.sum += lanes[0][i];
    found.magnitudes += lanes[1][i];
  }
  return found;
}

// The products of one row of weights with R rows of codes, `step` bytes apart. U vectors at a time have sums of their own.
template <int P, int R, int U>
inline void multiply_rows(const uint8_t* weights, size_t bytes, const int8_t* codes, size_t step, int32_t* totals) {
  constexpr int bits = 8 / P;
  __m512i masks[P], sums[R][U][P];
  for (int p = 0; p < P; p++) masks[p] = _mm512_set1_epi8(char(((1 << bits) - 1) << bits * p));
  for (auto& row : sums) {
    for (auto& unrolled : row) {
      for (__m512i& place : unrolled) place = _mm512_setzero_si512();
    }
  }
  size_t i = 0;
  for (; i + U * vector_bytes <= bytes; i += U * vector_bytes) {
#pragma GCC unroll 2
    for (int u = 0; u < U; u++) {
      const __m512i packed = _mm512_loadu_si512(weights + i + u * vector_bytes);
#pragma GCC unroll 4
      for (int p = 0; p < P; p++) {
        const __m512i place = _mm512_and_si512(packed, masks[p]);
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
          const int8_t* x = codes + r * step + (i + u * vector_bytes) * P + p * vector_bytes;
          sums[r][u][p] = _mm512_dpbusd_epi32(sums[r][u][p], place, _mm512_load_si512(x));
        }
      }
    }
  }
  for (; i < bytes; i += vector_bytes) {
    const __m512i packed = _mm512_maskz_loadu_epi8(first_bytes(bytes - i), weights + i);
    for (int p = 0; p < P; p++) {
      const __m512i place = _mm512_and_si512(packed, masks[p]);
      for (int r = 0; r < R; r++) {
        sums[r][0][p] =
            _mm512_dpbusd_epi32(sums[r][0][p], place, _mm512_load_si512(codes + r * step + i * P + p * vector_bytes));
      }
    }
  }
  for (int r = 0; r < R; r++) {
    __m512i total = _mm512_setzero_si512();
    for (int p = 0; p < P; p++) {
      __m512i place = sums[r][0][p];
      for (int u = 1; u < U; u++) place = _mm512_add_epi32(place, sums[r][u][p]);
      total = _mm512_add_epi32(total, _mm512_srai_epi32(place, bits * p));
    }
    totals[r] = _mm512_reduce_add_epi32(total);
  }
}

template <int P>
void multiply(const MatMul& matmul, const uint8_t* weights, const int8_t* arranged, const RowSums* sums, size_t rows,
              int first, int last, float* y) {
  constexpr int at_once = 4;
  const size_t bytes = matmul.weight_bytes(), step = arranged_bytes(matmul);
  const int offset = 1 << (matmul.bits - 1);
  for (int n = first; n < last; n++) {
    const uint8_t* row_of_weights = weights + size_t(n) * bytes;
    for (size_t row = 0; row < rows;) {
      int32_t totals[at_once];
      const size_t count = rows - row >= at_once ? at_once : 1;
      const int8_t* codes = arranged + row * step;
      if (count == at_once) {
        multiply_rows<P, at_once, 1>(row_of_weights, bytes, codes, step, totals);
      } else {
        multiply_rows<P, 1, 2>(row_of_weights, bytes, codes, step, totals);
      }
      for (size_t r = 0; r < count; r++, row++) {
        y[row * matmul.outputs + n] = float(int64_t{totals[r]} - offset * sums[row].sum);
      }
    }
  }
}

#pragma GCC pop_options

}  // namespace

const MatMulKernel matmul_avx512_kernel = {
    "dot products of packed weights (AVX-512 VNNI)",
    arranged_bytes,
    [](const MatMul& matmul, const float* a, int8_t* arranged) {
      return matmul.bits == 2 ? arrange<4>(matmul, a, arranged) : arrange<2>(matmul, a, arranged);
    },
    [](const MatMul& matmul, const uint8_t* weights, const int8_t* arranged, const RowSums* sums, size_t rows, int first,
       int last, float* y) {
      (matmul.bits == 2 ? multiply<4> : multiply<2>)(matmul, weights, arranged, sums, rows, first, last, y);
    },
};

}  // namespace qil_deploy
