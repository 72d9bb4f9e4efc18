// Storing codes with AVX2: shared by its kernels. To be included where the target is switched to AVX2.
#pragma once

inline void copy_bytes(uint8_t* target, const uint8_t* source, int count) {
  if (count >= 16) {
    const auto copy16 = [&](int at) {
      const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + at));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(target + at), bytes);
    };
    for (int i = 0; i + 16 <= count; i += 16) copy16(i);
    copy16(count - 16);
  } else if (count >= 8) {
    uint64_t first, last;
    std::memcpy(&first, source, 8);
    std::memcpy(&last, source + count - 8, 8);
    std::memcpy(target, &first, 8);
    std::memcpy(target + count - 8, &last, 8);
  } else {
    for (int i = 0; i < count; i++) target[i] = source[i];
  }
}

// Stores those of 64 codes (or fewer) that the mask selects, one after another.
inline void store_masked(uint8_t* target, const uint8_t* codes, uint64_t mask) {
  while (mask != 0) {
    const int first = int(_tzcnt_u64(mask));
    const uint64_t rest = ~(mask >> first);
    const int count = rest == 0 ? 64 : int(_tzcnt_u64(rest));
    copy_bytes(target, codes + first, count);
    target += count;
    mask = first + count >= 64 ? 0 : mask >> (first + count) << (first + count);
  }
}

// The Clip, on 32 codes.
inline __m256i clipped(__m256i codes, const TileTask& task) {
  codes = _mm256_max_epu8(codes, _mm256_set1_epi8(char(task.low)));
  return _mm256_min_epu8(codes, _mm256_set1_epi8(char(task.high)));
}

// The OR of all bytes.
inline uint8_t or_bytes(__m256i bits) {
  alignas(32) uint8_t bytes[32];
  _mm256_store_si256(reinterpret_cast<__m256i*>(bytes), bits);
  uint8_t all = 0;
  for (uint8_t byte : bytes) all |= byte;
  return all;
}

// 8 sums -> results, rounded and with the zero point. They are clamped to the range that saturation to 0..255 needs, so that
// rounding cannot overflow.
inline __m256i rounded_sums(const TileTask& task, int channel, __m256i sums) {
  const __m256i products = _mm256_mullo_epi32(sums, _mm256_set1_epi32(task.multipliers[channel]));
  const __m256i total = _mm256_add_epi32(products, _mm256_set1_epi32(task.bias[channel]));
  const __m256 value = _mm256_mul_ps(_mm256_cvtepi32_ps(total), _mm256_set1_ps(task.scales[channel]));
  const __m256 bounded = _mm256_min_ps(_mm256_max_ps(value, _mm256_set1_ps(-1024.0f)), _mm256_set1_ps(1024.0f));
  return _mm256_add_epi32(_mm256_cvtps_epi32(bounded), _mm256_set1_epi32(task.zero_point));
}

// 32 sums, 8 in each of 4 vectors -> the codes of 32 pixels.
inline __m256i codes_of(const TileTask& task, int channel, const __m256i* sums) {
  const __m256i first = _mm256_packs_epi32(rounded_sums(task, channel, sums[0]), rounded_sums(task, channel, sums[1]));
  const __m256i second = _mm256_packs_epi32(rounded_sums(task, channel, sums[2]), rounded_sums(task, channel, sums[3]));
  // Packing works in halves of a register: groups of 4 pixels come out in this order.
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  return clipped(_mm256_permutevar8x32_epi32(_mm256_packus_epi16(first, second), order), task);
}
