#include "packed_image.h"

#include <algorithm>
#include <cstring>

namespace qil_deploy::channels_last {

PackedImage::PackedImage(const Layer& layer, int height, int width, int64_t rows, int64_t columns)
    : layer_(layer),
      height_(height),
      width_(width),
      pixel_bytes_((layer.in_channels + packed_channels - 1) / packed_channels * packed_channels),
      rows_(rows),
      pitch_(std::max<int64_t>(columns, int64_t{layer.pad_left} + std::max(width, packed_columns))) {}

bool PackedImage::fits() const {
  constexpr int64_t most = int64_t{1} << 31;
  return rows_ < (1 << 24) && pitch_ < (1 << 26) && rows_ * pitch_ < most / pixel_bytes_;
}

bool PackedImage::is_read(int64_t row) const {
  for (int64_t tap = 0; tap < layer_.kernel_h; tap++) {
    if ((row - tap * layer_.dilation_h) % layer_.stride_h == 0) return true;
  }
  return false;
}

bool PackedImage::pack(size_t row, const uint8_t* x, uint8_t* pixels) const {
  if (!is_read(int64_t(row))) return true;
  uint8_t* to = pixels + row * row_bytes();
  const int64_t line = int64_t(row) - layer_.pad_top;
  if (line < 0 || line >= height_) {
    std::memset(to, 0, row_bytes());
    return true;
  }
  const size_t plane = size_t(height_) * width_;
  const ImageRow image = {x + line * width_, x + layer_.in_channels * plane, plane, layer_.in_channels, width_};
  return pack_row(image, layer_.pad_left, int(pitch_), to) <= layer_.input_capacity;
}

}  // namespace qil_deploy::channels_last
