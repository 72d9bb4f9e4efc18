#include "pack.h"

#include <arm_neon.h>

#include <cstring>

namespace qil_deploy::neon {

namespace {

constexpr int columns_at_once = 16;

// Codes of a column and the following ones, zero past the last.
uint8x16_t load(const uint8_t* codes, int columns) {
  if (columns >= columns_at_once) return vld1q_u8(codes);
  uint8_t some[columns_at_once] = {};
  std::memcpy(some, codes, columns);
  return vld1q_u8(some);
}

uint8_t all_or(uint8x16_t codes) {
  const uint64x2_t halves = vreinterpretq_u64_u8(codes);
  uint64_t both = vgetq_lane_u64(halves, 0) | vgetq_lane_u64(halves, 1);
  for (int bits = 32; bits >= 8; bits /= 2) both |= both >> bits;
  return uint8_t(both);
}

// `join(codes of each channel of a unit, units of each column)` makes the units of 16 columns.
template <int codes_per_unit, typename Unit, typename Join>
uint8_t pack(const PackedRow& r, Join join) {
  const int units = (r.channels_per_group + codes_per_unit - 1) / codes_per_unit;
  const size_t pixel = size_t(r.groups) * r.units_per_group;
  Unit* first = reinterpret_cast<Unit*>(r.row);
  std::memset(first, 0, sizeof(Unit) * pixel * r.width);
  first += pixel * r.left;
  uint8x16_t seen = vdupq_n_u8(0);
  for (int group = 0; group < r.groups; group++, first += r.units_per_group) {
    for (int unit = 0; unit < units; unit++) {
      const int channel = unit * codes_per_unit;
      const uint8_t* codes = r.codes + (size_t(group) * r.channels_per_group + channel) * r.plane;
      for (int x = 0; x < r.columns; x += columns_at_once) {
        const int columns = r.columns - x < columns_at_once ? r.columns - x : columns_at_once;
        uint8x16_t of_channels[codes_per_unit];
        for (int c = 0; c < codes_per_unit; c++) {
          const bool exists = channel + c < r.channels_per_group;
          of_channels[c] = exists ? load(codes + c * r.plane + x, columns) : vdupq_n_u8(0);
          seen = vorrq_u8(seen, of_channels[c]);
        }
        Unit joined[columns_at_once];
        join(of_channels, joined);
        Unit* to = first + unit + pixel * x;
        for (int i = 0; i < columns; i++, to += pixel) *to = joined[i];
      }
    }
  }
  return all_or(seen);
}

}  // namespace

uint8_t pack_triples(const PackedRow& row) {
  return pack<3, uint8_t>(row, [](const uint8x16_t* codes, uint8_t* units) {
    // Masked: the table has 64 entries, even if a code is out of range and the result will not be used.
    const uint8x16_t pair = vsliq_n_u8(codes[0], codes[1], 2);
    vst1q_u8(units, vandq_u8(vsliq_n_u8(pair, codes[2], 4), vdupq_n_u8(63)));
  });
}

uint8_t pack_pairs(const PackedRow& row) {
  return pack<2, uint16_t>(row, [](const uint8x16_t* codes, uint16_t* units) {
    const uint8x16x2_t pairs = vzipq_u8(codes[0], codes[1]);
    vst1q_u8(reinterpret_cast<uint8_t*>(units), pairs.val[0]);
    vst1q_u8(reinterpret_cast<uint8_t*>(units + 8), pairs.val[1]);
  });
}

uint8_t pack_singles(const PackedRow& row) {
  return pack<1, uint8_t>(row, [](const uint8x16_t* codes, uint8_t* units) { vst1q_u8(units, codes[0]); });
}

}  // namespace qil_deploy::neon
