"""Cards: the views that are text. Pure functions of a trace, in the JSON shapes of docs/contracts.md."""

from __future__ import annotations

from moescope.figures.cards.answers import answers
from moescope.figures.cards.expert import expert_card
from moescope.figures.cards.findings import defaults, findings
from moescope.figures.cards.tokens import documents, search, token_window

__all__ = ["answers", "defaults", "documents", "expert_card", "findings", "search", "token_window"]
