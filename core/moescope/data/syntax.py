"""What each character of Python source is, by the standard library's own tokenizer."""

from __future__ import annotations

import io
import keyword
import tokenize
import warnings
from collections.abc import Iterator
from itertools import accumulate

from moescope.data.base import Span

_PUNCTUATION = frozenset("()[]{},:;.") | {"...", "->"}
_STRINGS = frozenset(
    code
    for name in (
        "STRING",
        "FSTRING_START",
        "FSTRING_MIDDLE",
        "FSTRING_END",
        "TSTRING_START",
        "TSTRING_MIDDLE",
        "TSTRING_END",
    )
    if (code := getattr(tokenize, name, None)) is not None
)
_PLAIN = {
    tokenize.NUMBER: "number",
    tokenize.COMMENT: "comment",
    tokenize.NEWLINE: "newline",
    tokenize.NL: "newline",
}
_BEFORE_STATEMENT = frozenset({tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING})

SYNTAX = ("keyword", "name", "operator", "punctuation", "number", "string", "docstring", "comment", "newline")
"""The values of the label `syntax`."""


def syntax_spans(source: str) -> list[Span] | None:
    """Spans of every token of Python source, in order; None where it is not valid Python for this interpreter.

    Keywords are the hard ones (`keyword.iskeyword`). A `docstring` is a string that is a statement of its own.
    `punctuation` is brackets, comma, colon, semicolon, dot, ellipsis and arrow; every other operator is `operator`.
    Blanks between tokens and indentation are in no span.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return list(_spans(source))
    except (tokenize.TokenError, SyntaxError, ValueError):
        return None


def _spans(source: str) -> Iterator[Span]:
    offsets = list(accumulate((len(line) + 1 for line in source.split("\n")), initial=0))
    tokens = list(tokenize.generate_tokens(io.StringIO(source, newline="\n").readline))
    before = tokenize.ENCODING
    for index, token in enumerate(tokens):
        value = _value(token)
        if value == "string" and before in _BEFORE_STATEMENT and tokens[index + 1].type == tokenize.NEWLINE:
            value = "docstring"
        if token.type not in (tokenize.NL, tokenize.COMMENT):
            before = token.type
        start = offsets[token.start[0] - 1] + token.start[1]
        end = min(offsets[token.end[0] - 1] + token.end[1], len(source))
        if value is not None and end > start:
            yield Span(start, end, value)


def _value(token: tokenize.TokenInfo) -> str | None:
    if token.type == tokenize.NAME:
        return "keyword" if keyword.iskeyword(token.string) else "name"
    if token.type == tokenize.OP:
        return "punctuation" if token.string in _PUNCTUATION else "operator"
    if token.type in _STRINGS:
        return "string"
    return _PLAIN.get(token.type)
