// Input codes, channels last, with the padding around them, in the units that one step of a kernel reads.
#pragma once

#include <cstddef>
#include <cstdint>

namespace qil_deploy::neon {

// A row of an image, and its destination.
struct PackedRow {
  const uint8_t* codes;    // the first that is packed, of channel 0
  size_t plane;            // bytes from channel to channel
  int groups;              // of the convolution
  int channels_per_group;
  int units_per_group;     // in the packed row; those past the last channel are zero
  int columns;             // that are packed
  int left, width;         // pixels of padding before them, pixels of the packed row
  uint8_t* row;            // [width][groups][units of a group]
};

// Three codes of 2 bits in a byte. Returns all codes, or-ed.
uint8_t pack_triples(const PackedRow& row);

// Two codes in two bytes. Returns all codes, or-ed.
uint8_t pack_pairs(const PackedRow& row);

// A code in a byte. Returns all codes, or-ed.
uint8_t pack_singles(const PackedRow& row);

}  // namespace qil_deploy::neon
