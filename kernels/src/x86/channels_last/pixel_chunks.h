// Chunks of output pixels, and the places in the packed image that each reads.
#pragma once

#include <vector>

#include "blocks.h"
#include "packed_image.h"

namespace qil_deploy::channels_last {

class PixelChunks {
 public:
  PixelChunks(const Layer& layer, int height, int width);

  const PackedImage& image() const { return image_; }
  size_t count() const { return size_t(chunks_); }
  size_t out_pixels() const { return size_t(out_pixels_); }
  int64_t first_pixel(size_t index) const { return out_pixels_ * int64_t(index) / chunks_; }
  int size(size_t index) const { return int(first_pixel(index + 1) - first_pixel(index)); }

  // Offsets of the window's taps, in bytes.
  const int64_t* taps() const { return taps_.data(); }

  // Input of the first tap of each pixel of a chunk; past the last pixel it is repeated.
  void find_pixels(size_t index, const uint8_t* packed, const uint8_t* (&pixels)[chunk_pixels]) const;

 private:
  const Layer& layer_;
  const int64_t out_width_, out_pixels_, chunks_;
  const PackedImage image_;
  std::vector<int64_t> taps_;
};

}  // namespace qil_deploy::channels_last
