"""Sets of a trace's tokens: a lasso's (asked by POST because it may name thousands), and those of an expert."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Response
from pydantic import Field

from moescope_server.deps import TraceDep
from moescope_server.schemas import In
from moescope_server.wire import JSON

router = APIRouter(prefix="/traces/{id}")


class SelectionAsk(In):
    tokens: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(max_length=100_000)]


@router.post("/selection")
def selection(body: SelectionAsk, opened: TraceDep) -> Response:
    from moescope.figures.cards.selection import selection_card

    return JSON(selection_card(opened.trace, body.tokens))


@router.get("/experts/{layer}/{expert}/tokens")
def tokens(opened: TraceDep, layer: int, expert: int) -> Response:
    from moescope.figures.cards.selection import expert_tokens

    return JSON(expert_tokens(opened.trace, layer, expert))
