"""What can be done with a TokenSet: choose documents, split off held-out ones, name its content."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace

import numpy as np

from moescope.data.base import Labels, TokenSet
from moescope.data.windows import source_of
from moescope.errors import InputError

GROUPS = ("domain", "label", "class", "topic", "category")
"""Labels by which documents are shared out fairly; the first that there is."""


def select(tokens: TokenSet, documents: np.ndarray) -> TokenSet:
    """The documents with these indices, in ascending order. Label codes and names stay as they are."""
    chosen = np.unique(np.asarray(documents, dtype=np.int64))
    if chosen.size and not 0 <= chosen[0] <= chosen[-1] < tokens.num_docs:
        raise IndexError(f"documents {chosen[0]}..{chosen[-1]} of a set of {tokens.num_docs}")
    new_index = np.full(tokens.num_docs, -1, np.int32)
    new_index[chosen] = np.arange(chosen.size, dtype=np.int32)
    doc = new_index[tokens.doc]
    keep = doc >= 0
    names = tokens.source.get("documents")
    found = replace(
        tokens,
        inputs=tokens.inputs[keep],
        doc=doc[keep],
        labels={name: Labels(item.codes[keep], item.names, item.scope) for name, item in tokens.labels.items()},
        source={**tokens.source, "documents": [names[i] for i in chosen]} if names else tokens.source,
        target=None if tokens.target is None else tokens.target[chosen],
        values=None if tokens.values is None else tokens.values[chosen],
        images=None if tokens.images is None else tokens.images[chosen],
    )
    return found if tokens.start is None or tokens.end is None else _with_text(found, tokens, chosen, keep)


def _with_text(found: TokenSet, tokens: TokenSet, chosen: np.ndarray, keep: np.ndarray) -> TokenSet:
    assert tokens.start is not None and tokens.end is not None
    bounds = text_bounds(tokens)
    lengths = np.diff(bounds)[chosen]
    moved = np.cumsum(lengths) - lengths - bounds[chosen]
    shift = moved[found.doc].astype(np.int64)
    return replace(
        found,
        text=b"".join(tokens.text[bounds[i] : bounds[i + 1]] for i in chosen),
        start=(tokens.start[keep] + shift).astype(np.int32),
        end=(tokens.end[keep] + shift).astype(np.int32),
    )


def text_bounds(tokens: TokenSet) -> np.ndarray:
    """int64 [num_docs + 1]: where each document's text begins, and the end. Its first token begins its text."""
    assert tokens.start is not None
    first = np.searchsorted(tokens.doc, np.arange(tokens.num_docs))
    bounds = np.append(tokens.start[first], len(tokens.text)).astype(np.int64)
    bounds[0] = 0
    return bounds


def take(tokens: TokenSet, first: int, last: int) -> TokenSet:
    """Documents `first` to `last` - 1, bounds as in a slice."""
    return select(tokens, np.arange(tokens.num_docs)[first:last])


def split(tokens: TokenSet, held_out: float = 0.1, seed: int = 0) -> tuple[TokenSet, TokenSet]:
    """Training and held-out documents. Windows of one file stay together, unless it is over a quarter of its group.

    Files are drawn by a hash of their names and the seed, in equal shares from every group of documents (`GROUPS`),
    until they hold at least the share `held_out` of the tokens; both parts get at least one. Raises `InputError` for
    a single document.
    """
    if tokens.num_docs < 2:
        raise InputError(
            "There is a single document, so that none can be held out: give more text, or shorter documents."
        )
    count = np.bincount(tokens.doc, minlength=tokens.num_docs)
    units = _units(tokens, count)
    wanted, out, total = held_out * tokens.num_tokens, set[str](), 0
    for name, size in _in_shares(units, _groups(tokens), count, seed)[:-1]:
        if out and total >= wanted:
            break
        out.add(name)
        total += size
    held = np.array([name in out for name in units])
    return select(tokens, np.flatnonzero(~held)), select(tokens, np.flatnonzero(held))


def _units(tokens: TokenSet, count: np.ndarray) -> list[str]:
    """A name per document; documents of one name are held out together."""
    names = [str(name) for name in tokens.source.get("documents") or range(tokens.num_docs)]
    file, group = [source_of(name) for name in names], _groups(tokens)
    of_file, of_group = Counter[tuple[int, str]](), Counter[int]()
    for index, size in enumerate(count.tolist()):
        of_file[group[index], file[index]] += size
        of_group[group[index]] += size
    large = [4 * of_file[key] > of_group[key[0]] for key in zip(group, file, strict=True)]
    return [f"{names[i]}\0{i}" if large[i] else file[i] for i in range(tokens.num_docs)]


def _groups(tokens: TokenSet) -> list[int]:
    """A code per document: its value of the first label in GROUPS that documents have, or one for all."""
    for name in GROUPS:
        if name in tokens.labels and tokens.labels[name].scope == "document":
            codes = np.full(tokens.num_docs, -1, np.int64)
            np.maximum.at(codes, tokens.doc, tokens.labels[name].codes)
            return [int(code) for code in codes]
    return [0] * tokens.num_docs


def _in_shares(units: list[str], groups: list[int], count: np.ndarray, seed: int) -> list[tuple[str, int]]:
    """Units and their sizes, in an order whose every beginning holds about the same share of each group's tokens."""

    def key(name: str) -> bytes:
        return hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=8).digest()

    size, whole, group = Counter[str](), Counter[int](), dict[str, int]()
    for name, code, tokens in zip(units, groups, count.tolist(), strict=True):
        code = group.setdefault(name, code)
        size[name] += tokens
        whole[code] += tokens
    place, before = dict[str, float](), Counter[int]()
    for name in sorted(size, key=key):
        place[name] = (before[group[name]] + size[name] / 2) / max(whole[group[name]], 1)
        before[group[name]] += size[name]
    return [(name, size[name]) for name in sorted(size, key=lambda name: (place[name], key(name)))]


def content_hash(tokens: TokenSet) -> str:
    """32 hex digits that name the content (tokens, documents, text, labels, targets, values), whatever its source."""
    digest = hashlib.blake2b(tokens.kind.encode(), digest_size=16)
    arrays = [tokens.inputs, tokens.doc, tokens.start, tokens.end, tokens.target, tokens.images]
    if tokens.values is not None:  # where there are none, the digest is that of earlier releases
        digest.update(b"values")
        arrays.append(tokens.values)
    for name, labels in sorted(tokens.labels.items()):
        digest.update(repr((name, labels.names, labels.scope)).encode())
        arrays.append(labels.codes)
    for array in arrays:
        if array is None:
            digest.update(b"none")
        else:
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    digest.update(tokens.text)
    return digest.hexdigest()
