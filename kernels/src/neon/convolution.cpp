// The kernels for the interface in `lowbit_conv.h`. A plan has two stages: rows of the input are packed (`pack.h`), then tiles
// are added up (`tile.h`) and requantized, block after block, so that the weights of one stay in the cache.
#include "convolution.h"

#include <sys/auxv.h>

#include <algorithm>
#include <cstring>

#include "ordered_weights.h"
#include "pack.h"
#include "requantize.h"

namespace qil_deploy::neon {

namespace {

constexpr int most_taps = 1 << 18;              // products of one sum; their bounds fit int32, packing them fits memory
constexpr int64_t most_packed_bytes = 1 << 30;  // of one image
constexpr int item_pixels = 128;
static_assert(item_pixels % tile_pixels == 0);

struct ConvolutionLayer final : PackedLayer {
  ConvolutionLayer(const Layer& of, OrderedWeights ordered)
      : layer(of), weights(std::move(ordered)), requantization(of) {}

  std::unique_ptr<Plan> plan(int height, int width) const override;
  size_t weight_bytes() const override { return weights.bytes(); }

  const Layer& layer;
  const OrderedWeights weights;
  const Requantization requantization;
};

class ConvolutionPlan final : public Plan {
 public:
  ConvolutionPlan(const ConvolutionLayer& packed, int height, int width)
      : packed_(packed),
        layer_(packed.layer),
        height_(height),
        width_(width),
        out_width_(layer_.output_width(width)),
        out_pixels_(layer_.output_height(height) * out_width_),
        packed_height_((layer_.output_height(height) - 1) * layer_.stride_h + (layer_.kernel_h - 1) * layer_.dilation_h + 1),
        packed_width_((out_width_ - 1) * layer_.stride_w + (layer_.kernel_w - 1) * layer_.dilation_w + 1),
        pixel_bytes_(int64_t{packed.weights.groups} * packed.weights.units_per_group * packed.weights.steps->unit_bytes) {
    const int rows_per_line = layer_.kernel_w / packed.weights.row_columns;
    for (int64_t y = 0; y < layer_.kernel_h; y++)
      for (int64_t x = 0; x < rows_per_line; x++)
        rows_.push_back((y * layer_.dilation_h * packed_width_ + x * layer_.dilation_w) * pixel_bytes_);
  }

  bool fits() const { return packed_height_ * packed_width_ <= most_packed_bytes / pixel_bytes_; }

  size_t scratch_bytes() const override { return size_t(packed_height_ * packed_width_ * pixel_bytes_); }
  int stages() const override { return 2; }
  size_t items(int stage) const override {
    return stage == 0 ? size_t(packed_height_) : packed_.weights.blocks.size() * items_per_block();
  }

  bool run(int stage, size_t item, const uint8_t* x, uint8_t* y, uint8_t* scratch) const override {
    if (stage == 0) return pack_row(int64_t(item), x, scratch);
    const int64_t first = int64_t(item % items_per_block()) * item_pixels;
    compute(packed_.weights.blocks[item / items_per_block()], first, std::min(first + item_pixels, out_pixels_), scratch,
            y);
    return true;
  }

 private:
  size_t items_per_block() const { return size_t(out_pixels_ + item_pixels - 1) / item_pixels; }

  bool pack_row(int64_t row, const uint8_t* x, uint8_t* scratch) const {
    uint8_t* to = scratch + row * packed_width_ * pixel_bytes_;
    const int64_t line = row - layer_.pad_top;
    const int64_t columns = std::min<int64_t>(width_, packed_width_ - layer_.pad_left);
    if (line < 0 || line >= height_ || columns <= 0) {
      std::memset(to, 0, packed_width_ * pixel_bytes_);
      return true;
    }
    const OrderedWeights& weights = packed_.weights;
    PackedRow packed;
    packed.codes = x + line * width_;
    packed.plane = size_t(height_) * width_;
    packed.groups = weights.groups;
    packed.channels_per_group = weights.channels_per_group;
    packed.units_per_group = weights.units_per_group;
    packed.columns = int(columns);
    packed.left = layer_.pad_left;
    packed.width = int(packed_width_);
    packed.row = to;
    const uint8_t seen = weights.steps->pack(packed);
    return seen <= layer_.input_capacity;  // which is 2**n - 1
  }

  // Output pixels `first` up to `last`, in the order of the output, of the channels of one block.
  void compute(const Block& block, int64_t first, int64_t last, const uint8_t* packed, uint8_t* y) const {
    const Steps& steps = *packed_.weights.steps;
    const int stride = block.registers * lanes / steps.lanes_per_channel;
    const uint8_t* group = packed + block.first_unit * steps.unit_bytes;
    int32_t sums[tile_pixels * tile_registers * lanes];
    for (int64_t pixel = first; pixel < last; pixel += tile_pixels) {
      const int count = int(std::min<int64_t>(tile_pixels, last - pixel));
      const uint8_t* pixels[tile_pixels];
      for (int p = 0; p < tile_pixels; p++) {
        const int64_t at = pixel + std::min(p, count - 1);
        const int64_t line = at / out_width_ * layer_.stride_h, column = at % out_width_ * layer_.stride_w;
        pixels[p] = group + (line * packed_width_ + column) * pixel_bytes_;
      }
      steps.add_tile(block, pixels, rows_.data(), sums);
      packed_.requantization.run(sums, stride, block.first_channel, block.channels, count,
                                 y + block.first_channel * out_pixels_ + pixel, size_t(out_pixels_));
    }
  }

  const ConvolutionLayer& packed_;
  const Layer& layer_;
  const int64_t height_, width_, out_width_, out_pixels_, packed_height_, packed_width_, pixel_bytes_;
  std::vector<ptrdiff_t> rows_;  // where each row of the kernel begins, in bytes from a pixel's first tap
};

std::unique_ptr<Plan> ConvolutionLayer::plan(int height, int width) const {
  auto plan = std::make_unique<ConvolutionPlan>(*this, height, width);
  return plan->fits() ? std::move(plan) : nullptr;
}

std::string why_not_lookup(const Layer& layer) {
  if (layer.largest_code > 1) return "weights of -" + std::to_string(layer.largest_code) + ".." +
                                     std::to_string(layer.largest_code) + "; takes -1..1";
  if (layer.input_capacity > 3) return "codes up to " + std::to_string(layer.input_high) + "; takes 0..3";
  if (layer.taps() > most_taps) return "more than 2**18 products in a sum";
  return "";
}

std::string why_not_narrow(const Layer& layer) {
  const int product = layer.largest_code * layer.input_capacity;
  if (product > 127) return "products of up to " + std::to_string(product) + "; takes 127";
  if (layer.taps() > most_taps) return "more than 2**18 products in a sum";
  return "";
}

std::string why_not_depthwise(const Layer& layer) {
  if (layer.channels_per_group() != 1 || layer.outputs_per_group() != 1) return "takes depthwise layers alone";
  const std::string reason = why_not_narrow(layer);
  if (!reason.empty()) return reason;
  const int sum = layer.taps() * layer.largest_code * layer.input_capacity;
  return sum > 32767 ? "sums of up to " + std::to_string(sum) + "; takes 32767" : "";
}

template <OrderedWeights (*order)(const Layer&)>
std::unique_ptr<PackedLayer> pack(const Layer& layer) {
  return std::make_unique<ConvolutionLayer>(layer, order(layer));
}

}  // namespace

const Kernel depthwise_kernel = {"depthwise, NEON", why_not_depthwise, pack<order_for_depthwise>};
const Kernel lookup_kernel = {"lookup, NEON", why_not_lookup, pack<order_for_lookup>};
const Kernel narrow_kernel = {"narrow sums, NEON", why_not_narrow, pack<order_for_narrow>};

bool has_dot_product() { return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0; }

}  // namespace qil_deploy::neon
