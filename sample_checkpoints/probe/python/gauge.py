"""A tipping-bucket rain gauge: every tip of the bucket is one pulse."""

from dataclasses import dataclass, field

TIP_MM = 0.2  # rain that tips the bucket once, in millimetres


@dataclass
class Gauge:
    """One instrument at one place.

    The bucket is too slow for a cloudburst: above 120 mm an hour some
    water falls past it, so the class keeps the raw count and lets the
    reader decide what to believe.
    """

    name: str
    tips: list[float] = field(default_factory=list)

    def tip(self, seconds: float) -> None:
        # A bounce of the switch looks like two tips; ignore the second.
        if self.tips and seconds - self.tips[-1] < 0.05:
            return
        self.tips.append(seconds)

    def total(self) -> float:
        return len(self.tips) * TIP_MM
