import math


def drop_spikes(rates: list[float], window: int = 5, width: float = 4.0) -> list[float]:
    """Replace what lies far from its neighbours by their median.

    This is a Hampel filter. Far means more than `width` times the median
    distance of the neighbours; 1.4826 turns that distance into a standard
    deviation where the noise is normal.
    """
    cleaned = list(rates)
    for index, rate in enumerate(rates):
        low, high = max(0, index - window), min(len(rates), index + window + 1)
        near = sorted(rates[low:high])
        middle = near[len(near) // 2]
        spread = 1.4826 * sorted(abs(value - middle) for value in near)[len(near) // 2]
        if math.isnan(rate) or abs(rate - middle) > width * max(spread, 0.2):
            cleaned[index] = middle
    return cleaned
