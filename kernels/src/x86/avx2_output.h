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

// Stores those of 64 codes (or fewer) that the mask names, one behind the other.
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
