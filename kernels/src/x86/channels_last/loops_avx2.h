// Common parts of the loops in this folder. To be included where the target is switched to AVX2.
#pragma once

// sums += the products of a pair of codes, over a register, with pairs of weights. In assembler, because GCC 12 else keeps
// sums in memory.
inline void add_products(__m256i& sums, __m256i codes, const WeightVector* weights) {
  __m256i products;
  __asm__("vpmaddubsw %3,%2,%1\n\tvpaddw %1,%0,%0" : "+x"(sums), "=&x"(products) : "x"(codes), "m"(*weights));
}

inline __m256i broadcast_pair(const uint8_t* codes) {
  __m256i pairs;
  __asm__("vpbroadcastw %1,%0" : "=x"(pairs) : "m"(*reinterpret_cast<const uint8_t(*)[step_channels]>(codes)));
  return pairs;
}

// A run of steps, for P pixels and V vectors of channels at once; with P * V at most 12, sums stay in registers.
template <int P, int V>
__attribute__((always_inline)) inline void add_steps(__m256i (&sums)[P][V], const uint8_t* const* pixels, const WeightVector* weights, int steps) {
  const uint8_t* codes[P];
#pragma GCC unroll 8
  for (int p = 0; p < P; p++) codes[p] = pixels[p];
  for (; steps > 0; steps -= unrolled_steps, weights += unrolled_steps * V) {
#pragma GCC unroll 4
    for (int step = 0; step < unrolled_steps; step++) {
#pragma GCC unroll 8
      for (int p = 0; p < P; p++) {
        const __m256i pairs = broadcast_pair(codes[p] + step * step_channels);
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) add_products(sums[p][v], pairs, weights + step * V + v);
      }
    }
#pragma GCC unroll 8
    for (int p = 0; p < P; p++) codes[p] += unrolled_steps * step_channels;
  }
}

// Number of pixels computed at once for a number of vectors of channels.
constexpr int pixels_at_once(int vectors) { return vectors == 4 ? 3 : vectors == 3 ? 4 : vectors == 2 ? 6 : 8; }

// Calls `compute(std::integral_constant<int, pixels>, first pixel)` until all are done: as many as possible, then 2, then 1.
template <int V, typename Compute>
inline void for_groups(int pixels, Compute compute) {
  constexpr int most = pixels_at_once(V);
  int first = 0;
  for (; pixels - first >= most && pixels - first != most + 1; first += most) {
    compute(std::integral_constant<int, most>(), first);
  }
  for (; pixels - first >= 2; first += 2) compute(std::integral_constant<int, 2>(), first);
  if (first < pixels) compute(std::integral_constant<int, 1>(), first);
}

// Sums of one run are kept in 16 bits; those of several are added up in 32.
inline void keep(int16_t* kept, __m256i sums, bool) { _mm256_store_si256(reinterpret_cast<__m256i*>(kept), sums); }

inline void keep(int32_t* kept, __m256i sums, bool first) {
  __m256i* to = reinterpret_cast<__m256i*>(kept);
  __m256i low = _mm256_cvtepi16_epi32(_mm256_castsi256_si128(sums));
  __m256i high = _mm256_cvtepi16_epi32(_mm256_extracti128_si256(sums, 1));
  if (!first) {
    low = _mm256_add_epi32(low, to[0]);
    high = _mm256_add_epi32(high, to[1]);
  }
  to[0] = low;
  to[1] = high;
}

inline __m256i load8(const int16_t* sums) {
  return _mm256_cvtepi16_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(sums)));
}

inline __m256i load8(const int32_t* sums) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(sums)); }

// The sums of 4 pixels of 8 channels -> results before the zero point, rounded.
inline void round_sums(const CodeMaker& maker, int channel, const __m256i* sums, __m256i* results) {
  const __m256 scale = _mm256_loadu_ps(maker.scales + channel);
  if (maker.in_float) {
    const __m256 factor = _mm256_loadu_ps(maker.factors + channel), offset = _mm256_loadu_ps(maker.offsets + channel);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
      const __m256 total = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[i]), factor, offset);
      results[i] = _mm256_cvtps_epi32(_mm256_mul_ps(total, scale));
    }
    return;
  }
  const __m256i multiplier = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(maker.multipliers + channel));
  const __m256i bias = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(maker.biases + channel));
  // Values are clamped to the range that saturation to 0..255 needs, so that rounding cannot overflow.
  const __m256 least = _mm256_set1_ps(-1024.0f), most = _mm256_set1_ps(1024.0f);
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    const __m256i products = _mm256_mullo_epi32(_mm256_srai_epi32(sums[i], maker.shift), multiplier);
    const __m256 value = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_add_epi32(products, bias)), scale);
    results[i] = _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(value, least), most));
  }
}

// The codes of 4 pixels of 8 channels: of each channel all 4, one after another; channels 4-7 in the upper half.
inline __m256i codes_of(const CodeMaker& maker, int channel, const __m256i* sums) {
  const __m256i zero_point = _mm256_set1_epi16(short(maker.zero_point));
  __m256i results[4];
  round_sums(maker, channel, sums, results);
  const __m256i first = _mm256_adds_epi16(_mm256_packs_epi32(results[0], results[1]), zero_point);
  const __m256i second = _mm256_adds_epi16(_mm256_packs_epi32(results[2], results[3]), zero_point);
  const __m256i order = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  __m256i codes = _mm256_shuffle_epi8(_mm256_packus_epi16(first, second), order);
  codes = _mm256_max_epu8(codes, _mm256_set1_epi8(char(maker.low)));
  return _mm256_min_epu8(codes, _mm256_set1_epi8(char(maker.high)));
}

template <int channel>
inline void store_quad(uint8_t* y, __m128i codes) {
  const uint32_t quad = uint32_t(_mm_extract_epi32(codes, channel));
  std::memcpy(y, &quad, 4);
}

// 4 neighbouring pixels of 4 channels.
inline void store_quads(uint8_t* y, size_t out_pixels, __m128i codes) {
  store_quad<0>(y, codes);
  store_quad<1>(y + out_pixels, codes);
  store_quad<2>(y + 2 * out_pixels, codes);
  store_quad<3>(y + 3 * out_pixels, codes);
}

// Writes the codes of neighbouring pixels of `count` channels, 8 at a time. place(i) is where the sums of channels 8i to
// 8i + 7 of the first pixel are; those of the next pixel lie `stride` sums on. There must be room for the sums of 4 pixels.
template <typename Place>
inline void write_codes(const CodeMaker& maker, int count, int pixels, uint8_t* y, size_t out_pixels, size_t stride,
                        Place place) {
  for (int channel = 0; channel < count; channel += 8, y += 8 * out_pixels) {
    const auto* from = place(channel / 8);
    for (int pixel = 0; pixel < pixels; pixel += 4, from += 4 * stride) {
      __m256i sums[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) sums[i] = load8(from + i * stride);
      const __m256i codes = codes_of(maker, channel, sums);
      if (pixels - pixel >= 4 && count - channel >= 8) {
        store_quads(y + pixel, out_pixels, _mm256_castsi256_si128(codes));
        store_quads(y + pixel + 4 * out_pixels, out_pixels, _mm256_extracti128_si256(codes, 1));
      } else {
        alignas(32) uint8_t all[8][4];
        _mm256_store_si256(reinterpret_cast<__m256i*>(all), codes);
        for (int c = 0; c < 8 && channel + c < count; c++) {
          for (int i = 0; i < 4 && pixel + i < pixels; i++) y[c * out_pixels + pixel + i] = all[c][i];
        }
      }
    }
  }
}
