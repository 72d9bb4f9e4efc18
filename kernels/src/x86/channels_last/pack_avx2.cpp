// Packs a row of an image, stored channel by channel, with channels side by side. Blocks of 16 columns of 32 channels are
// transposed in registers.
#include <immintrin.h>

#include <cstring>

#include "packed_image.h"

namespace qil_deploy::channels_last {

namespace {

#pragma GCC push_options
#pragma GCC target("avx2,bmi,bmi2,fma")

inline __m128i load16(const uint8_t* bytes) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)); }

inline void store32(uint8_t* bytes, __m256i vector) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(bytes), vector);
}

// 16 columns of 32 rows `stride` bytes apart -> 16 groups of 32 bytes, `pixel_bytes` apart. In each half of a register, four
// times over, row i is interleaved with row i + 8: that moves each bit of the row's number into the column's.
inline void transpose(const uint8_t* rows, size_t stride, int pixel_bytes, uint8_t* to, __m256i& seen) {
  __m256i a[16], b[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) {
    const __m256i first = _mm256_castsi128_si256(load16(rows + i * stride));
    a[i] = _mm256_inserti128_si256(first, load16(rows + (i + 16) * stride), 1);
    seen = _mm256_or_si256(seen, a[i]);
  }
  const auto interleave = [](const __m256i* from, __m256i* into) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
      into[2 * i] = _mm256_unpacklo_epi8(from[i], from[i + 8]);
      into[2 * i + 1] = _mm256_unpackhi_epi8(from[i], from[i + 8]);
    }
  };
  interleave(a, b);
  interleave(b, a);
  interleave(a, b);
  interleave(b, a);
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) store32(to + i * pixel_bytes, a[i]);
}

inline uint8_t or_bytes(__m256i bits) {
  alignas(32) uint8_t bytes[32];
  _mm256_store_si256(reinterpret_cast<__m256i*>(bytes), bits);
  uint8_t all = 0;
  for (uint8_t byte : bytes) all |= byte;
  return all;
}

}  // namespace

__attribute__((noinline)) uint8_t pack_row(const ImageRow& row, int left, int pitch, uint8_t* pixels) {
  const int pixel_bytes = (row.channels + packed_channels - 1) / packed_channels * packed_channels;
  __m256i seen = _mm256_setzero_si256();
  for (int channel = 0; channel < row.channels; channel += packed_channels) {
    const uint8_t* codes = row.codes + channel * row.plane;
    const int count = row.channels - channel < packed_channels ? row.channels - channel : packed_channels;
    // For a row shorter than a vector, the following bytes of the image are read too, and overwritten below.
    const bool whole = count == packed_channels && codes + (packed_channels - 1) * row.plane + packed_columns <= row.end;
    for (int x = 0; x < row.width; x += packed_columns) {
      const int first = row.width - x >= packed_columns || row.width < packed_columns ? x : row.width - packed_columns;
      uint8_t* to = pixels + (left + first) * size_t(pixel_bytes) + channel;
      if (row.width >= packed_columns ? count == packed_channels : whole) {
        transpose(codes + first, row.plane, pixel_bytes, to, seen);
      } else {
        alignas(32) uint8_t copied[packed_channels][packed_columns] = {};
        const int columns = row.width < packed_columns ? row.width : packed_columns;
        for (int c = 0; c < count; c++) {
          if (columns == packed_columns) {  // a constant for the compiler
            std::memcpy(copied[c], codes + c * row.plane + first, packed_columns);
          } else {
            std::memcpy(copied[c], codes + c * row.plane + first, columns);
          }
        }
        transpose(copied[0], packed_columns, pixel_bytes, to, seen);
      }
    }
  }
  std::memset(pixels, 0, size_t(left) * pixel_bytes);
  std::memset(pixels + (left + row.width) * size_t(pixel_bytes), 0, (pitch - left - row.width) * size_t(pixel_bytes));
  return or_bytes(seen);
}

#pragma GCC pop_options

}  // namespace qil_deploy::channels_last
