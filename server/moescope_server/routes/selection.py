"""A selection of a trace's tokens, as drawn by a lasso: asked by POST because it may name thousands."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Response
from pydantic import Field

from moescope_server.deps import TraceDep
from moescope_server.schemas import In
from moescope_server.wire import JSON

router = APIRouter(prefix="/traces/{id}/selection")


class SelectionAsk(In):
    tokens: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(max_length=100_000)]


@router.post("")
def selection(body: SelectionAsk, opened: TraceDep) -> Response:
    from moescope.figures.cards.selection import selection_card

    return JSON(selection_card(opened.trace, body.tokens))
