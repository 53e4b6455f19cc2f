"""Syntax spans are what the standard library's tokenizer says, at the right characters."""

from __future__ import annotations

import ast
import inspect
import keyword
from itertools import pairwise

import pytest

from moescope.data import windows
from moescope.data.syntax import SYNTAX, syntax_spans

SOURCE = '''"""Doc of naïve 😀."""
import os  # why

def f(x: int = 3) -> str:
    """Inner."""
    y = "text" if x >= 0x1F else b'b'
    return y

class match: ...
'''


def of(value: str, source: str = SOURCE) -> list[str]:
    spans = syntax_spans(source)
    assert spans is not None
    return [source[span.start : span.end] for span in spans if span.value == value]


def test_each_kind_of_token_is_found_where_it_stands() -> None:
    assert of("docstring") == ['"""Doc of naïve 😀."""', '"""Inner."""']
    assert of("keyword") == ["import", "def", "if", "else", "return", "class"]
    assert of("name") == ["os", "f", "x", "int", "str", "y", "x", "y", "match"]
    assert of("comment") == ["# why"]
    assert of("number") == ["3", "0x1F"]
    assert of("string") == ['"text"', "b'b'"]
    assert of("operator") == ["=", "=", ">="]
    assert of("punctuation") == ["(", ":", ")", "->", ":", ":", "..."]
    assert set(of("newline")) == {"\n"}


def test_a_real_module_is_labelled_in_order_without_overlap_and_agrees_with_ast() -> None:
    source = inspect.getsource(windows)
    spans = syntax_spans(source)
    assert spans is not None
    assert all(a.end <= b.start for a, b in pairwise(spans))
    assert {span.value for span in spans} <= set(SYNTAX)
    assert all(keyword.iskeyword(source[s.start : s.end]) for s in spans if s.value == "keyword")
    nodes = [n for n in ast.walk(ast.parse(source)) if isinstance(n, (ast.Module, ast.ClassDef, ast.FunctionDef))]
    assert len(of("docstring", source)) == sum(ast.get_docstring(node) is not None for node in nodes) > 3


def test_carriage_returns_do_not_shift_the_spans() -> None:
    source = SOURCE.replace("\n", "\r\n")
    assert of("keyword", source) == of("keyword")
    assert of("name", source) == of("name")


@pytest.mark.parametrize("broken", ["def f(:\n  '''", "x = (\n", "if x:\n    a\n  b\n"])
def test_what_is_no_python_is_unlabelled(broken: str) -> None:
    assert syntax_spans(broken) is None


def test_no_text_has_no_spans() -> None:
    assert syntax_spans("") == []
