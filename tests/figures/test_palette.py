"""The palette tells experts apart for people with and without colour blindness, on light and on dark pages."""

from __future__ import annotations

import re

import numpy as np
import pytest

import colour_science as science
from moescope.figures.palette import (
    CATEGORICAL,
    DIVERGING,
    HIGHLIGHTED,
    MAX_DISTINCT,
    NEUTRAL,
    SEQUENTIAL,
    expert_colours,
    label_colours,
    layer_colours,
)
from synthetic import make_trace

LIGHT, DARK = "#ffffff", "#14161a"
# The smallest CIEDE2000 between any two of the first n colours: (n, normal vision, each simulated colour blindness).
HOLDS = ((4, 45, 25), (8, 23, 13), (10, 20, 11), (12, 17, 10.5), (16, 15, 8), (20, 12, 7))


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, -1, 2), (50, 0, 0), 2.3669),
        ((50, 2.49, -0.001), (50, -2.49, 0.0009), 7.1792),
        ((50, 2.49, -0.001), (50, -2.49, 0.0011), 7.2195),
        ((50, 2.5, 0), (73, 25, -18), 27.1492),
        ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
        ((2.0776, 0.0795, -1.135), (0.9033, -0.0636, -0.5514), 0.9082),
        ((22.7233, 20.0904, -46.694), (23.0331, 14.973, -42.5619), 2.0373),
    ],
)
def test_difference_agrees_with_the_published_pairs(
    one: tuple[float, ...], other: tuple[float, ...], expected: float
) -> None:
    """Test data of Sharma, Wu and Dalal 2005, Table 1."""
    assert science.difference(np.array(one, float), np.array(other, float)) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("vision", science.VISIONS)
@pytest.mark.parametrize(("n", "normal", "blind"), HOLDS)
def test_first_n_colours_are_far_apart(n: int, normal: float, blind: float, vision: str) -> None:
    smallest = science.smallest_difference(expert_colours(n), vision)
    assert smallest >= (normal if vision == "normal" else blind)


@pytest.mark.parametrize("vision", science.VISIONS)
def test_grey_is_no_experts_colour(vision: str) -> None:
    grey = science.lab([NEUTRAL], vision)
    assert science.difference(science.lab(list(CATEGORICAL[:8]), vision), grey).min() > 6


@pytest.mark.parametrize("background", [LIGHT, DARK])
def test_every_colour_is_readable_on_light_and_dark(background: str) -> None:
    assert science.contrast(list(CATEGORICAL), background).min() >= 2.2
    assert science.contrast([NEUTRAL], background).min() >= 3.0
    assert science.contrast([shade for _, shade in SEQUENTIAL], background).min() >= 2.1


@pytest.mark.parametrize("vision", science.VISIONS)
def test_sequential_scale_rises_in_lightness(vision: str) -> None:
    lightness = science.lab([shade for _, shade in SEQUENTIAL], vision)[:, 0]
    assert np.diff(lightness).min() > 3


def _over(rgba: str, background: str) -> str:
    red, green, blue, alpha = (float(x) for x in re.findall(r"[\d.]+", rgba))
    ground = [int(background[i : i + 2], 16) for i in (1, 3, 5)]
    mixed = [round(alpha * c + (1 - alpha) * g) for c, g in zip((red, green, blue), ground, strict=True)]
    return "#" + "".join(f"{c:02x}" for c in mixed)


@pytest.mark.parametrize("background", [LIGHT, DARK])
@pytest.mark.parametrize("vision", science.VISIONS)
def test_diverging_scale_leaves_the_page_in_two_directions(vision: str, background: str) -> None:
    """Drawn on the page, each step away from the middle is a step away from the page, and the ends differ."""
    seen = science.lab([_over(shade, background) for _, shade in DIVERGING], vision)
    page = science.lab([background], vision)
    away = science.difference(seen, page)
    assert away[0] > away[1] > away[2] and away[4] > away[3] > away[2]
    assert away[2] < 6 and min(away[0], away[4]) > 30
    assert science.difference(seen[0], seen[4]) > 40


def test_beyond_twenty_experts_all_are_grey() -> None:
    assert len(set(expert_colours(MAX_DISTINCT))) == MAX_DISTINCT == 20
    assert expert_colours(21) == [NEUTRAL] * 21
    assert label_colours([str(i) for i in range(25)]) == [*CATEGORICAL, *[NEUTRAL] * 5]


def test_of_many_experts_the_most_used_keep_a_colour() -> None:
    trace = make_trace(experts=32, layers=1)
    colours = layer_colours(trace, 0)
    used = np.bincount(trace.layers[0].top1_T, minlength=32)
    coloured = [e for e in range(32) if colours[e] != NEUTRAL]
    assert len(coloured) == HIGHLIGHTED and len({colours[e] for e in coloured}) == HIGHLIGHTED
    assert min(used[coloured]) >= max(used[e] for e in range(32) if e not in coloured)


def test_few_experts_all_have_their_own_colour() -> None:
    assert layer_colours(make_trace(experts=8, layers=1), 0) == list(CATEGORICAL[:8])
