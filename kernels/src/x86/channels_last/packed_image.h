// The input of the kernels of this folder: the image with its padding, row by row, pixel by pixel, channels side by side.
#pragma once

#include "../../lowbit_conv.h"

namespace qil_deploy::channels_last {

constexpr int packed_channels = 32;  // those of a pixel are padded with zeros to a multiple of it
constexpr int packed_columns = 16;   // that are packed at once

// A row of the image, channel by channel. Plain data: the function that reads it is compiled for AVX2.
struct ImageRow {
  const uint8_t* codes;  // of the first channel
  const uint8_t* end;    // of the image
  size_t plane;          // bytes from channel to channel
  int channels, width;
};

// Writes a row as `pitch` pixels, of which those of the image begin at `left`; the others are 0. Returns the bits of all
// codes read, ORed. `pitch` is at least `left` + max(width, packed_columns).
uint8_t pack_row(const ImageRow& row, int left, int pitch, uint8_t* pixels);

class PackedImage {
 public:
  // `rows` and `columns` are those that will be read, from the padding before the first on.
  PackedImage(const Layer& layer, int height, int width, int64_t rows, int64_t columns);

  bool fits() const;  // into 2**31 bytes
  size_t bytes() const { return size_t(rows_) * row_bytes() + slack; }
  size_t row_bytes() const { return size_t(pitch_) * pixel_bytes_; }
  int pixel_bytes() const { return pixel_bytes_; }
  size_t rows() const { return size_t(rows_); }

  // Returns whether all codes are within the layer's proven range. Rows that no output reads are left unchanged.
  bool pack(size_t row, const uint8_t* x, uint8_t* pixels) const;

 private:
  bool is_read(int64_t row) const;

  static constexpr size_t slack = 64;  // the last step of the last pixel may read on

  const Layer& layer_;
  const int height_, width_, pixel_bytes_;
  const int64_t rows_, pitch_;
};

}  // namespace qil_deploy::channels_last
