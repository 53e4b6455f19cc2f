"""CIELAB, CIEDE2000, contrast and simulated colour blindness: what the palette is judged by."""

from __future__ import annotations

import numpy as np

_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_WHITE = np.array([0.95047, 1.0, 1.08883])
# Machado, Oliveira and Fernandes 2009, severity 1.0, on linear RGB.
VISIONS = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}


def linear(colours: list[str]) -> np.ndarray:
    """Linear RGB [n, 3] of hex colours."""
    rgb = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in colours]) / 255
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(colours: list[str], vision: str = "normal") -> np.ndarray:
    """CIELAB [n, 3] as one of `VISIONS` sees them."""
    seen = np.clip(linear(colours) @ VISIONS[vision].T, 0, 1)
    x = seen @ _XYZ.T / _WHITE
    f = np.where(x > (6 / 29) ** 3, np.cbrt(x), x / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


def contrast(colours: list[str], background: str) -> np.ndarray:
    """WCAG contrast ratio of each colour with the background."""
    light, ground = linear(colours) @ _XYZ[1] + 0.05, float(linear([background])[0] @ _XYZ[1]) + 0.05
    return np.maximum(light, ground) / np.minimum(light, ground)


def difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """CIEDE2000 (Sharma, Wu and Dalal 2005) of CIELAB colours, broadcast."""
    light_1, a_1, b_1 = np.moveaxis(one, -1, 0)
    light_2, a_2, b_2 = np.moveaxis(other, -1, 0)
    mean = (np.hypot(a_1, b_1) + np.hypot(a_2, b_2)) / 2
    stretch = 1.5 - 0.5 * np.sqrt(mean**7 / (mean**7 + 25.0**7))
    chroma_1, chroma_2 = np.hypot(a_1 * stretch, b_1), np.hypot(a_2 * stretch, b_2)
    hue_1 = np.degrees(np.arctan2(b_1, a_1 * stretch)) % 360
    hue_2 = np.degrees(np.arctan2(b_2, a_2 * stretch)) % 360
    grey = chroma_1 * chroma_2 == 0
    turn = np.where(grey, 0, (hue_2 - hue_1 + 180) % 360 - 180)
    turn = np.where((turn == -180) & (hue_2 > hue_1), 180, turn)
    d_hue = 2 * np.sqrt(chroma_1 * chroma_2) * np.sin(np.radians(turn / 2))
    middle = np.where(np.abs(hue_1 - hue_2) <= 180, (hue_1 + hue_2) / 2, (hue_1 + hue_2 + 360) / 2 % 360)
    middle = np.where(grey, hue_1 + hue_2, middle)
    chroma = (chroma_1 + chroma_2) / 2
    shape = (
        1
        - 0.17 * np.cos(np.radians(middle - 30))
        + 0.24 * np.cos(np.radians(2 * middle))
        + 0.32 * np.cos(np.radians(3 * middle + 6))
        - 0.20 * np.cos(np.radians(4 * middle - 63))
    )
    offset = ((light_1 + light_2) / 2 - 50) ** 2
    light = (light_2 - light_1) / (1 + 0.015 * offset / np.sqrt(20 + offset))
    colour = (chroma_2 - chroma_1) / (1 + 0.045 * chroma)
    hue = d_hue / (1 + 0.015 * chroma * shape)
    twist = (
        -2 * np.sqrt(chroma**7 / (chroma**7 + 25.0**7)) * np.sin(np.radians(60 * np.exp(-(((middle - 275) / 25) ** 2))))
    )
    return np.sqrt(light**2 + colour**2 + hue**2 + twist * colour * hue)


def smallest_difference(colours: list[str], vision: str) -> float:
    """The smallest CIEDE2000 between any two of the colours."""
    seen = lab(colours, vision)
    apart = difference(seen[:, None], seen[None])
    return float(apart[np.triu_indices(len(colours), 1)].min())
