// The shuffles that take bytes apart into 32 bits, within each 16 bytes of a vector: shuffle k takes bytes 4k + 0..3.
#pragma once

#include <cstddef>
#include <cstdint>

namespace qil_deploy {

// As long as the longest vector; a shorter one reads the beginning. 0x80 makes a zero.
struct Spread {
  alignas(64) uint8_t source[4][64];
  constexpr Spread() : source{} {
    for (int k = 0; k < 4; k++) {
      for (int i = 0; i < 64; i++) source[k][i] = uint8_t(i % 4 == 0 ? 4 * k + i % 16 / 4 : 0x80);
    }
  }
  constexpr const uint8_t* operator[](int k) const { return source[k]; }
};
constexpr Spread spread;

}  // namespace qil_deploy
