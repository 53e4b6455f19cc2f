"""A random linear router that never learns."""

from __future__ import annotations

from moescope.routers.topk_softmax import TopKSoftmax


class Frozen(TopKSoftmax):
    """`topk_softmax` whose weights stay as drawn (2402.13089): the control for what learning to route adds."""

    learns = False
    rule = "random linear map, softmax, top-k, renormalise"
    source = "2402.13089, frozen router"
