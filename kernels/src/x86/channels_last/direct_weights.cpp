#include <algorithm>

#include "direct.h"

namespace qil_deploy::channels_last {

namespace {

constexpr int fewest_inputs = 8, fewest_outputs = 9;  // of a group: else most of a step or of a vector would be zeros
constexpr int largest_product = 2047;                 // 8 steps are then within 16 bits

// Bounds on a channel's sum of products on either side, over a run.
struct Reach {
  int up = 0, down = 0;
  bool fits() const { return up <= 32767 && down <= 32768; }
};

class BlockMaker {
 public:
  BlockMaker(const Layer& layer, Span outputs) : layer_(layer), steps_(steps_of(layer)), taps_(layer.kernel_h * layer.kernel_w) {
    block_.outputs = outputs;
    block_.weights.resize(size_t(taps_) * steps_ * outputs.vectors());
  }

  DirectBlock make() {
    for (int o = 0; o < block_.outputs.count; o++) {
      for (int c = 0; c < layer_.channels_per_group(); c++) {
        const int8_t* codes =
            &layer_.codes[(size_t(block_.outputs.first + o) * layer_.channels_per_group() + c) * taps_];
        for (int tap = 0; tap < taps_; tap++) weight(tap, c / step_channels, o, c % step_channels) = codes[tap];
      }
    }
    cut_stretches();
    const auto ends = [](const Stretch& stretch) { return stretch.ends_run; };
    block_.one_run = std::count_if(block_.stretches.begin(), block_.stretches.end(), ends) == 1;
    return std::move(block_);
  }

 private:
  int8_t& weight(int tap, int step, int output, int channel) {
    WeightVector* vectors = &block_.weights[(size_t(tap) * steps_ + step) * block_.outputs.vectors()];
    return vectors[output / lanes].weights[output % lanes][channel];
  }

  void cut_stretches() {
    std::vector<Reach> reached(block_.outputs.count);
    for (int tap = 0; tap < taps_; tap++) {
      int first = 0;
      for (int step = 0; step < steps_; step += unrolled_steps) {
        std::vector<Reach> next = reached;
        add_steps(tap, step, next);
        if (!std::all_of(next.begin(), next.end(), [](const Reach& reach) { return reach.fits(); })) {
          end_run(tap, first, step);
          first = step;
          next.assign(next.size(), Reach{});
          add_steps(tap, step, next);
        }
        reached = next;
      }
      block_.stretches.push_back({tap, first, steps_ - first, tap == taps_ - 1});
    }
  }

  void add_steps(int tap, int step, std::vector<Reach>& reached) {
    for (int o = 0; o < block_.outputs.count; o++) {
      for (int i = 0; i < unrolled_steps * step_channels; i++) {
        const int product = layer_.input_capacity * weight(tap, step + i / step_channels, o, i % step_channels);
        (product > 0 ? reached[o].up : reached[o].down) += product > 0 ? product : -product;
      }
    }
  }

  // A run that ends where a tap begins ends with the stretch before.
  void end_run(int tap, int first, int step) {
    if (step > first) {
      block_.stretches.push_back({tap, first, step - first, true});
    } else {
      block_.stretches.back().ends_run = true;
    }
  }

  const Layer& layer_;
  const int steps_, taps_;
  DirectBlock block_;
};

}  // namespace

std::vector<DirectBlock> direct_blocks(const Layer& layer) {
  std::vector<DirectBlock> blocks;
  for (const Span& outputs : cut_outputs(layer)) blocks.push_back(BlockMaker(layer, outputs).make());
  return blocks;
}

std::string why_not_direct(const Layer& layer) {
  if (layer.channels_per_group() < fewest_inputs || layer.outputs_per_group() < fewest_outputs) {
    return "takes groups of at least " + std::to_string(fewest_inputs) + " input and " + std::to_string(fewest_outputs) +
           " output channels";
  }
  const int product = layer.input_capacity * layer.largest_code;
  if (product > largest_product) return "products of up to " + std::to_string(product) + "; takes 2047";
  for (int o = 0; o < layer.out_channels; o++) {
    if (largest_sum(layer, o) > 2147483647) return "sums pass 32 bits";
  }
  return "";
}

}  // namespace qil_deploy::channels_last
