#include "pixel_chunks.h"

#include <algorithm>

namespace qil_deploy::channels_last {

namespace {

// Rows or columns of the padded image that `outputs` of them read.
int64_t read(int64_t outputs, int64_t stride, int64_t kernel, int64_t dilation) {
  return (outputs - 1) * stride + (kernel - 1) * dilation + 1;
}

}  // namespace

PixelChunks::PixelChunks(const Layer& layer, int height, int width)
    : layer_(layer),
      out_width_(layer.output_width(width)),
      out_pixels_(layer.output_height(height) * out_width_),
      chunks_((out_pixels_ + chunk_pixels - 1) / chunk_pixels),
      image_(layer, height, width, read(layer.output_height(height), layer.stride_h, layer.kernel_h, layer.dilation_h),
             read(out_width_, layer.stride_w, layer.kernel_w, layer.dilation_w)) {
  for (int64_t y = 0; y < layer.kernel_h; y++) {
    for (int64_t x = 0; x < layer.kernel_w; x++) {
      taps_.push_back(y * layer.dilation_h * int64_t(image_.row_bytes()) + x * layer.dilation_w * image_.pixel_bytes());
    }
  }
}

void PixelChunks::find_pixels(size_t index, const uint8_t* packed, const uint8_t* (&pixels)[chunk_pixels]) const {
  const int64_t first = first_pixel(index);
  const int count = size(index);
  int64_t row = first / out_width_, column = first % out_width_;
  for (int i = 0; i < count; i++) {
    pixels[i] = packed + row * layer_.stride_h * int64_t(image_.row_bytes()) +
                column * layer_.stride_w * image_.pixel_bytes();
    if (++column == out_width_) {
      column = 0;
      row++;
    }
  }
  std::fill(pixels + count, pixels + chunk_pixels, pixels[count - 1]);
}

}  // namespace qil_deploy::channels_last
