#pragma once

#include <charconv>
#include <optional>
#include <string_view>
#include <vector>

namespace rain {

/* Reads "12.5;80;81.25" into seconds. Returns nothing for a line that
 * holds anything but numbers, because half a line is worse than none. */
inline std::optional<std::vector<double>> parse_tips(std::string_view line) {
  std::vector<double> tips;
  while (!line.empty()) {
    double value = 0;
    const char* end = line.data() + line.size();
    auto [stop, error] = std::from_chars(line.data(), end, value);
    if (error != std::errc{}) return std::nullopt;
    tips.push_back(value);
    if (stop == end) break;
    if (*stop != ';') return std::nullopt;
    line.remove_prefix(static_cast<std::size_t>(stop - line.data()) + 1);
  }
  return tips;
}

}  // namespace rain
