import statistics
from collections.abc import Iterable, Iterator


def hours(tips: Iterable[float]) -> Iterator[tuple[int, int]]:
    """Yield (hour, tips in that hour) for every hour with rain."""
    count: dict[int, int] = {}
    for second in tips:
        hour = int(second // 3600)
        count[hour] = count.get(hour, 0) + 1
    yield from sorted(count.items())


def describe(tips: list[float], limit: float = 7.6) -> str:
    rates = [0.2 * n for _, n in hours(tips)]
    if not rates:
        return "dry"
    heavy = sum(rate > limit for rate in rates)
    middle = statistics.median(rates)
    return f"{len(rates)} wet hours, median {middle:.1f} mm, {heavy} heavy"


if __name__ == "__main__":
    print(describe([12.5, 80.0, 81.25, 3700.0, 3701.5]))
