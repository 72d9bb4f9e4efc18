#include "scratch.h"

#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

namespace qil_deploy {

namespace {

struct Buffer {
  uint8_t* data = nullptr;
  size_t bytes = 0;
};

class Pool {
 public:
  Buffer take(size_t bytes) {
    if (bytes == 0) return {};
    {
      std::lock_guard lock(mutex_);
      for (size_t i = 0; i < free_.size(); i++) {
        if (free_[i].bytes < bytes) continue;
        const Buffer buffer = free_[i];
        free_[i] = free_.back();
        free_.pop_back();
        return buffer;
      }
      if (!free_.empty()) {  // too small for this one: grows instead of staying beside a larger one
        std::free(free_.back().data);
        free_.pop_back();
      }
    }
    const size_t rounded = (bytes + 63) / 64 * 64;
    void* data = std::aligned_alloc(64, rounded);
    if (data == nullptr) throw std::bad_alloc();
    return {static_cast<uint8_t*>(data), rounded};
  }

  void give_back(Buffer buffer) {
    if (buffer.data == nullptr) return;
    std::lock_guard lock(mutex_);
    free_.push_back(buffer);
  }

 private:
  std::mutex mutex_;
  std::vector<Buffer> free_;
};

Pool pool;

}  // namespace

Scratch::Scratch(size_t bytes) {
  const Buffer buffer = pool.take(bytes);
  data_ = buffer.data;
  bytes_ = buffer.bytes;
}

Scratch::~Scratch() { pool.give_back({data_, bytes_}); }

}  // namespace qil_deploy
