#ifndef RAIN_GAUGE_HPP_
#define RAIN_GAUGE_HPP_

#include <cstdint>
#include <string>
#include <utility>

#include "ring_buffer.h"

namespace rain {

enum class Status : std::uint8_t { kDry, kRaining, kFrozen };

/// One tipping-bucket instrument. Not thread-safe: the interrupt handler
/// calls tip(), everybody else must read a copy.
class Gauge {
 public:
  explicit Gauge(std::string name) : name_(std::move(name)) {}
  virtual ~Gauge() = default;

  bool tip(double seconds);
  double total_mm() const { return 0.2 * static_cast<double>(count_); }
  virtual Status status(double now) const = 0;

 protected:
  RingBuffer<double, 64> recent_;

 private:
  std::string name_;
  std::uint32_t count_ = 0;
};

}  // namespace rain

#endif  // RAIN_GAUGE_HPP_
