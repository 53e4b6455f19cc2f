#pragma once

#include <type_traits>

namespace rain::units {

constexpr double kMillimetresPerInch = 25.4;
constexpr double kTip = 0.2;  // mm

template <typename Tag>
struct Quantity {
  double value;
  constexpr Quantity operator+(Quantity other) const { return {value + other.value}; }
  constexpr bool operator<(Quantity other) const { return value < other.value; }
};

struct DepthTag {};
struct RateTag {};
using Depth = Quantity<DepthTag>;
using Rate = Quantity<RateTag>;

constexpr Depth operator""_mm(long double v) { return {static_cast<double>(v)}; }
constexpr Depth operator""_in(long double v) {
  return {static_cast<double>(v) * kMillimetresPerInch};
}

static_assert(!std::is_same_v<Depth, Rate>, "a depth is not a rate");
static_assert(1.0_in < 26.0_mm);

}  // namespace rain::units
