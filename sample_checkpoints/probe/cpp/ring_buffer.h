// SPDX-License-Identifier: Apache-2.0
// Permission is granted under that licence and under no other; whoever
// passes this file on shall leave these three lines in their place.
#pragma once

#include <array>
#include <cstddef>
#include <stdexcept>

namespace rain {

// The last N tips of the bucket; the oldest is overwritten.
template <typename T, std::size_t N>
class RingBuffer {
 public:
  void push(const T& value) noexcept {
    items_[next_] = value;
    next_ = (next_ + 1) % N;
    if (size_ < N) ++size_;
  }

  const T& back() const {
    if (size_ == 0) throw std::out_of_range("no tip yet");
    return items_[(next_ + N - 1) % N];
  }

  std::size_t size() const noexcept { return size_; }

 private:
  std::array<T, N> items_{};
  std::size_t next_ = 0;
  std::size_t size_ = 0;
};

}  // namespace rain
