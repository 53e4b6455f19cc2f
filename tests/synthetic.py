"""Made-up traces whose truth is known: routing that follows a label with a given strength."""

from __future__ import annotations

import numpy as np

from moescope.data.base import Labels
from moescope.trace.schema import LayerMeta, LayerTrace, Trace, TraceMeta

WORDS = (
    "def",
    " return",
    " the",
    " of",
    " class",
    ":",
    "\n",
    " x",
    " licence",
    " template",
    "<",
    ">",
    " and",
    "(",
    ")",
)
DOMAINS = ("python", "cpp", "english", "licence")
SYNTAX = ("name", "keyword", "operator")


def make_trace(
    *,
    tokens: int = 2000,
    layers: int = 3,
    experts: int = 8,
    k: int = 2,
    docs: int = 20,
    strength: float = 2.0,
    width: int = 16,
    sample: int = 500,
    seed: int = 0,
) -> Trace:
    """Routing logits are noise plus `strength` times a fixed preference of each domain (a document label), per layer.

    With strength 0 routing is independent of every label. `syntax` is a token label, unlabelled outside python.
    """
    rng = np.random.default_rng(seed)
    doc = np.sort(rng.integers(0, docs, tokens)).astype(np.int32)
    doc[0], doc[-1] = 0, docs - 1
    position = np.concatenate([np.arange(n) for n in np.bincount(doc, minlength=docs)]).astype(np.int32)
    domain_of_doc = np.arange(docs) % len(DOMAINS)
    domain = domain_of_doc[doc].astype(np.int16)
    word = rng.integers(0, len(WORDS), tokens)
    pieces = [WORDS[i].encode() for i in word]
    ends = np.cumsum([len(p) for p in pieces]).astype(np.int32)
    starts = np.concatenate([[0], ends[:-1]]).astype(np.int32)
    syntax = np.where(domain == 0, word % len(SYNTAX), -1).astype(np.int16)
    chosen = np.sort(rng.choice(tokens, min(sample, tokens), replace=False)).astype(np.int32)

    made: dict[int, LayerTrace] = {}
    for layer in range(layers):
        prefer = rng.normal(size=(len(DOMAINS), experts))
        logits = (rng.normal(size=(tokens, experts)) + strength * prefer[domain]).astype(np.float32)
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        order = np.argsort(-p, axis=1)
        top = np.take_along_axis(p, order, 1)
        gates = top[:, :k] / top[:, :k].sum(1, keepdims=True)
        directions = rng.normal(size=(experts, width))
        hidden = logits[chosen] @ directions + rng.normal(size=(len(chosen), width))
        made[layer] = LayerTrace(
            meta=LayerMeta(
                layer=layer, path=f"blocks.{layer}.moe.router", router="topk_softmax", num_experts=experts, k=k
            ),
            expert_TK=order[:, :k].astype(np.int32),
            gate_TK=gates.astype(np.float32),
            sent_TK=np.ones((tokens, k), dtype=bool),
            entropy_T=-(p * np.log(p)).sum(1).astype(np.float32),
            margin_T=(top[:, k - 1] - top[:, k]).astype(np.float32)
            if k < experts
            else np.full(tokens, np.nan, np.float32),
            mean_probs_E=p.mean(0).astype(np.float64),
            logits_TE=logits,
            hidden_nd=hidden.astype(np.float32),
        )
    return Trace(
        meta=TraceMeta(
            model={"name": "synthetic", "family": "moescope", "params": 0, "d_model": width, "num_layers": layers},
            data={"corpus": "synthetic", "synthetic": True, "documents": [f"doc{i}" for i in range(docs)]},
            kind="text",
            layers=tuple(made[layer].meta for layer in range(layers)),
            self_check=({"name": "synthetic", "passed": True, "detail": "made up, nothing was captured"},),
            created="2026-01-01T00:00:00+00:00",
        ),
        doc=doc,
        position=position,
        labels={"domain": Labels(domain, DOMAINS, "document"), "syntax": Labels(syntax, SYNTAX, "token")},
        layers=made,
        token_id=word.astype(np.int32),
        start=starts,
        end=ends,
        text=b"".join(pieces),
        sample=chosen,
    )
