"""OBJECTIVES: one auxiliary loss per file, each a pure function of what one layer saw."""

from __future__ import annotations

from moescope.objectives.base import Objective
from moescope.objectives.load_balance import LoadBalance
from moescope.objectives.router_z import RouterZ

OBJECTIVES: dict[str, type[Objective]] = {
    "load_balance": LoadBalance,
    "router_z": RouterZ,
}
