"""The token map: each point is the token it says it is, where its vector was placed, in its group's colour."""

from __future__ import annotations

import dataclasses
import html
import re
from typing import Any

import numpy as np
import pytest

from figure_cases import CASES, HOSTILE, browser, with_layers
from moescope.errors import InputError
from moescope.figures import token_map
from moescope.figures.counts import confidence
from moescope.figures.palette import CATEGORICAL, NEUTRAL
from moescope.projection.base import Projection
from moescope.trace.schema import Trace
from synthetic import make_trace


def placed(trace: Trace, seed: int = 0) -> Projection:
    """Random positions, so that no test passes by the order of points."""
    assert trace.sample is not None
    xy = np.random.default_rng(seed).normal(size=(len(trace.sample), 2)).astype(np.float32)
    return Projection(
        xy=xy, method="pca", seed=0, explained=None, trustworthiness=0.5, neighbours=15, seconds=0.0, key="",
        note="Turned.",
    )  # fmt: skip


def points(figure: Any) -> list[tuple[int, float, float, dict[str, Any], int, str]]:
    """(token, x, y, group, best expert, hover) of every point."""
    found = []
    for data in browser(figure)["data"]:
        size = len(data["customdata"])
        assert len(data["x"]) == len(data["y"]) == len(data["meta"]["experts"]) == size
        assert np.asarray(data["customdata"]).dtype == np.int32
        rows = zip(
            data["customdata"], data["x"], data["y"], [data["meta"]["group"]] * size, data["meta"]["experts"],
            data.get("text", [""] * size), strict=True,
        )  # fmt: skip
        found += [(int(token), float(x), float(y), group, expert, said) for token, x, y, group, expert, said in rows]
    return found


@pytest.mark.parametrize("color", ["expert", "confidence", "domain", "syntax", "half"])
def test_points_are_the_sampled_tokens_where_they_were_placed(color: str) -> None:
    trace = CASES["variable_k"]()
    projection = placed(trace)
    found = points(token_map(trace, 1, color=color, projection=projection))
    assert trace.sample is not None
    at = {int(token): i for i, token in enumerate(trace.sample)}
    assert sorted(token for token, *_ in found) == sorted(at)
    for token, x, y, group, expert, _ in found:
        assert (x, y) == pytest.approx(tuple(projection.xy[at[token]]), abs=1e-6)
        assert expert == trace.layers[1].expert_TK[token, 0]
        if color == "expert":
            assert group == {"expert": expert}
        elif color == "confidence":
            assert group == {"confidence": True}
        else:
            code = trace.labels[color].codes[token]
            assert group == {"label": color, "value": trace.labels[color].names[code] if code >= 0 else None}


def test_colours_are_those_of_the_palette_and_unlabelled_is_hollow() -> None:
    trace = CASES["variable_k"]()
    for data in browser(token_map(trace, 0, projection=placed(trace)))["data"]:
        expert = data["meta"]["group"]["expert"]
        assert data["marker"]["color"] == (CATEGORICAL[expert] if expert >= 0 else NEUTRAL)
        assert data["name"] == (f"E{expert}" if expert >= 0 else "no expert")
    for data in browser(token_map(trace, 0, color="half", projection=placed(trace)))["data"]:
        value = data["meta"]["group"]["value"]
        assert (data["marker"].get("symbol") == "circle-open") == (value is None)
        assert data["marker"]["color"] == (
            NEUTRAL if value is None else CATEGORICAL[trace.labels["half"].names.index(value)]
        )


def test_small_groups_are_drawn_last() -> None:
    trace = CASES["plain"]()
    sizes = [len(data["customdata"]) for data in browser(token_map(trace, 0, projection=placed(trace)))["data"]]
    assert sizes == sorted(sizes, reverse=True)


def test_of_many_experts_only_the_coloured_ones_are_in_the_legend() -> None:
    trace = CASES["big"]()
    data = browser(token_map(trace, 0, projection=placed(trace)))["data"]
    named = [d for d in data if d["showlegend"]]
    assert len(named) == 8 and all(d["marker"]["color"] != NEUTRAL for d in named)
    assert len({d["meta"]["group"]["expert"] for d in data}) == len(data) > 20
    grey = [d["marker"]["color"] == NEUTRAL for d in data]
    assert grey == sorted(grey, reverse=True)


def test_thinning_is_announced_and_keeps_every_experts_share() -> None:
    trace = make_trace(tokens=6000, sample=4000, experts=8, docs=30)
    full = points(token_map(trace, 0, projection=placed(trace)))
    figure = token_map(trace, 0, projection=placed(trace), max_points=500)
    thin = points(figure)
    meta = figure.layout.meta
    assert len(thin) == 500 == meta["shown"] and meta["total"] == 6000
    assert meta["note"] == (
        "500 of 6,000 tokens, stratified by expert, out of the 4,000 whose router inputs the trace kept"
    )
    assert {p[0] for p in thin} <= {p[0] for p in full}
    for expert in range(8):
        before, after = (sum(p[4] == expert for p in part) for part in (full, thin))
        assert abs(after - before / 8) <= 1


def test_the_same_seed_keeps_the_same_tokens() -> None:
    trace = CASES["plain"]()

    def kept(seed: int) -> list[int]:
        return sorted(p[0] for p in points(token_map(trace, 0, projection=placed(trace), max_points=100, seed=seed)))

    assert kept(0) == kept(0) != kept(1)


def test_a_sample_of_all_tokens_needs_no_note() -> None:
    trace = make_trace(tokens=300, sample=300)
    meta = token_map(trace, 0, projection=placed(trace)).layout.meta
    assert meta["note"] is None and meta["shown"] == meta["total"] == 300
    meta = token_map(
        make_trace(tokens=300, sample=100), 0, projection=placed(make_trace(tokens=300, sample=100))
    ).layout.meta
    assert meta["note"] == "100 of 300 tokens: those whose router inputs the trace kept"


def test_markup_in_tokens_labels_and_documents_is_shown_literally() -> None:
    trace = CASES["hostile_text"]()
    for color in ("expert", "<kind>"):
        figure = token_map(trace, 0, color=color, projection=placed(trace))
        for data in browser(figure)["data"]:
            assert "<" not in data["name"] and "%{" not in data["name"]
            assert "%{" not in data["hovertemplate"].replace("%{text}", "")
        for token, *_, said in points(figure):
            assert set(re.findall(r"<[^>]*>", said)) <= {"<b>", "</b>", "<br>"}
            bold = re.findall(r"<b>(.*?)</b>", said)
            plain = html.unescape(bold[0]).replace("\u200b", "").replace("⇥", "\t").strip("␣")
            assert len(bold) == 1 and plain == trace.token_text(token).strip(" ")
    assert "<kind>" not in browser(figure)["layout"]["legend"]["title"]["text"]
    assert any("<" in piece for piece in HOSTILE)


def test_hover_says_experts_gates_labels_and_place() -> None:
    trace = CASES["variable_k"]()
    layer = trace.layers[2]
    sure, name = confidence(layer)
    for token, *_, said in points(token_map(trace, 2, projection=placed(trace))):
        lines = said.split("<br>")
        routes = [
            f"E{e} {g:.2f}" if sent else f"E{e} dropped"
            for e, g, sent in zip(layer.expert_TK[token], layer.gate_TK[token], layer.sent_TK[token], strict=True)
            if e >= 0
        ]
        assert lines[1] == "L2: " + (", ".join(routes) or "no expert")
        assert lines[2] == f"{name} {sure[token]:.2f}"
        assert lines[-1] == f"doc{trace.doc[token]}, token {token:,}"
        assert ("half: " in said) == (trace.labels["half"].codes[token] >= 0)
    assert all(p[-1] == "" for p in points(token_map(trace, 2, projection=placed(trace), text=False)))


def test_patches_are_named_by_their_place() -> None:
    trace = CASES["patches"]()
    for token, *_, said in points(token_map(trace, 0, projection=placed(trace))):
        place = trace.position[token]
        assert said.startswith(f"<b>patch {place // 4},{place % 4}</b><br>")


def test_confidence_is_the_top_probability_or_says_that_it_is_a_gate() -> None:
    trace = make_trace()
    layer = trace.layers[0]
    assert layer.logits_TE is not None
    p = np.exp(layer.logits_TE - layer.logits_TE.max(1, keepdims=True))
    value, name = confidence(layer)
    assert name == "top router probability" and value == pytest.approx((p / p.sum(1, keepdims=True)).max(1), rel=1e-5)
    for other in (
        with_layers(trace, logits_TE=None),
        with_layers(trace, entropy_T=lambda traced: traced.entropy_T * 0.9),  # a sigmoid router's distribution
    ):
        value, name = confidence(other.layers[0])
        assert name == "largest gate" and value == pytest.approx(layer.gate_TK.max(1))
    figure = browser(token_map(trace, 0, color="confidence", projection=placed(trace)))
    data = figure["data"][0]
    assert data["marker"]["color"] == pytest.approx(confidence(layer)[0][data["customdata"]], rel=1e-5)
    assert data["marker"]["colorbar"]["title"]["text"] == "top router probability"
    assert "top router probability" in figure["layout"]["meta"]["caption"]


def test_the_caption_says_tensor_n_method_and_how_far_to_believe_it() -> None:
    trace = CASES["plain"]()
    caption = token_map(trace, 1, projection=placed(trace)).layout.meta["caption"]
    for words in (
        "Router inputs of layer 1",
        "n = 500 of 2,000 tokens",
        "PCA",
        "Trustworthiness 0.50 with 15",
        "Turned.",
    ):
        assert words in caption


def test_without_a_projection_it_is_pca() -> None:
    from moescope.projection.projecting import project

    trace = CASES["plain"]()
    hidden = trace.layers[0].hidden_nd
    assert hidden is not None and trace.sample is not None
    expected = dict(zip(trace.sample.tolist(), project(hidden, "pca").xy.tolist(), strict=True))
    for token, x, y, *_ in points(token_map(trace, 0)):
        assert (x, y) == pytest.approx(tuple(expected[token]), abs=1e-5)


def test_webgl_draws_the_same_points() -> None:
    trace = CASES["plain"]()
    drawn = {kind: token_map(trace, 0, projection=placed(trace), webgl=kind) for kind in (False, True)}
    assert {data.type for data in drawn[False].data} == {"scatter"}
    assert {data.type for data in drawn[True].data} == {"scattergl"}
    assert points(drawn[False]) == points(drawn[True])


def test_refusals_are_sentences() -> None:
    trace = CASES["plain"]()
    with pytest.raises(InputError, match="kept no hidden vectors of layer 0"):
        token_map(with_layers(trace, hidden_nd=None), 0)
    with pytest.raises(InputError, match="kept no hidden vectors of layer 0"):
        token_map(dataclasses.replace(trace, sample=None), 0)
    with pytest.raises(InputError, match="no label 'colour'"):
        token_map(trace, 0, color="colour", projection=placed(trace))
    with pytest.raises(InputError, match=r"shape \(300, 2\), but the trace sampled 500 tokens"):
        token_map(trace, 0, projection=placed(make_trace(tokens=300, sample=300)))
