#include "product_weights.h"

#include <algorithm>

namespace qil_deploy {

ProductWeights::ProductWeights(const Layer& layer, int channels_per_cell) : channels_per_cell_(channels_per_cell) {
  const int window = layer.kernel_h * layer.kernel_w, channels = layer.channels_per_group();
  const int outputs = layer.outputs_per_group(), blocks = blocks_per_group(layer);
  steps_ = (channels + channels_per_cell - 1) / channels_per_cell * window;
  const size_t step_bytes = size_t(block_outputs) * channels_per_cell;
  weights_.resize(size_t(layer.groups) * blocks * steps_ * step_bytes);
  for (int o = 0; o < layer.out_channels; o++) {
    const int block = o / outputs * blocks + o % outputs / block_outputs, place = o % outputs % block_outputs;
    const int8_t* codes = layer.codes.data() + size_t(o) * layer.taps();
    for (int channel = 0; channel < channels; channel++) {
      for (int tap = 0; tap < window; tap++) {
        const size_t step = size_t(block) * steps_ + size_t(channel / channels_per_cell) * window + tap;
        weights_[step * step_bytes + place * channels_per_cell + channel % channels_per_cell] =
            codes[channel * window + tap];
      }
    }
  }
  find_runs(layer.input_capacity);
}

void ProductWeights::find_runs(int capacity) {
  const size_t step_bytes = size_t(block_outputs) * channels_per_cell_;
  const size_t blocks = weights_.size() / (step_bytes * steps_);
  run_first_.push_back(0);
  for (size_t pair = 0; pair < blocks * block_outputs / 2; pair++) {
    const int8_t* first = weights_.data() + pair / 8 * steps_ * step_bytes + pair % 8 * 2 * channels_per_cell_;
    int positive[2] = {}, negative[2] = {}, length = 0;
    for (int step = 0; step < steps_; step++, first += step_bytes) {
      int more[2] = {}, less[2] = {};
      for (int i = 0; i < 2 * channels_per_cell_; i++) {
        const int product = capacity * first[i], channel = i / channels_per_cell_;
        if (product > 0) {
          more[channel] += product;
        } else {
          less[channel] += product;
        }
      }
      bool full = length == 65535;
      for (int j = 0; j < 2; j++) full |= positive[j] + more[j] > 32767 || negative[j] + less[j] < -32768;
      if (full) {
        run_lengths_.push_back(uint16_t(length));
        length = 0;
        std::fill(positive, positive + 2, 0);
        std::fill(negative, negative + 2, 0);
      }
      for (int j = 0; j < 2; j++) {
        positive[j] += more[j];
        negative[j] += less[j];
      }
      length++;
    }
    run_lengths_.push_back(uint16_t(length));
    run_first_.push_back(uint32_t(run_lengths_.size()));
  }
}

void ProductWeights::find(TileTask& task, int outputs, int index) const {
  const int first = index * outputs;
  const size_t step_bytes = size_t(block_outputs) * channels_per_cell_;
  task.weights = reinterpret_cast<const uint8_t*>(weights_.data()) + first / block_outputs * steps_ * step_bytes +
                 first % block_outputs * channels_per_cell_;
  task.runs = run_lengths_.data() + run_first_[index];
  task.run_count = int(run_first_[index + 1] - run_first_[index]);
}

}  // namespace qil_deploy
