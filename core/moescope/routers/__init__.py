"""ROUTERS: one router per file. `base.py` holds the Routing contract."""

from __future__ import annotations

from moescope.routers.base import Router
from moescope.routers.topk_softmax import TopKSoftmax

ROUTERS: dict[str, type[Router]] = {
    "topk_softmax": TopKSoftmax,
}
