"""CoNLL-U: the text as it was written, gold tags at the right characters, and faults named by line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from moescope.data.base import Document
from moescope.data.conllu import conllu_documents
from moescope.data.encode import encode
from moescope.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def row(id: str, form: str, upos: str = "_", xpos: str = "_", misc: str = "_") -> str:
    return "\t".join([id, form, "_", upos, xpos, "_", "_", "_", "_", misc])


def treebank(*rows: str) -> str:
    return "\n".join(rows) + "\n"


def documents(*rows: str) -> list[Document]:
    return list(conllu_documents(treebank(*rows), "t.conllu"))


def tags(document: Document, name: str = "upos") -> list[tuple[str, str]]:
    return [(document.text[span.start : span.end], span.value) for span in document.spans[name]]


DON_T = [
    row("1", "I", "PRON", "PRP"),
    row("2-3", "don't", misc="SpaceAfter=No|X=1"),
    row("2", "do", "AUX", "VBP"),
    row("3", "n't", "PART", "RB"),
    row("4", ".", "PUNCT", "."),
]
DU = [
    "# sent_id = s2",
    row("1-2", "du"),
    row("1", "de", "ADP"),
    row("2", "le", "DET"),
    row("2.1", "(elided)", "VERB"),
    row("3", "pain", "NOUN", misc="SpaceAfter=No"),
    row("4", "😀", "SYM"),
]


def test_words_of_a_multiword_token_are_labelled_where_they_spell_it() -> None:
    (document,) = documents("# newdoc id = one", *DON_T, "", *DU, "")
    assert document.id == "t.conllu:one"
    assert document.text == "I don't.\ndu pain😀\n"
    assert tags(document) == [
        ("I", "PRON"), ("do", "AUX"), ("n't", "PART"), (".", "PUNCT"), ("pain", "NOUN"), ("😀", "SYM"),
    ]  # fmt: skip
    assert tags(document, "xpos") == [("I", "PRP"), ("do", "VBP"), ("n't", "RB"), (".", ".")]


def test_documents_are_those_of_newdoc_and_paragraphs_those_of_newpar() -> None:
    first, second = documents(
        "# newdoc id = a", "# newpar id = p1", *DON_T, "", "# newpar", *DON_T, "", "# newdoc", "# sent_id = z", *DU, ""
    )
    assert (first.id, first.text) == ("t.conllu:a", "I don't.\n\nI don't.\n")
    assert second.text == "du pain😀\n" and second.id != first.id


def test_without_newdoc_each_sentence_is_a_document() -> None:
    first, second = documents(*DON_T, "", "", *DU)
    assert (first.id, first.text) == ("t.conllu:1", "I don't.\n")
    assert (second.id, second.text) == ("t.conllu:s2", "du pain😀\n")


def test_gold_tags_reach_the_tokens(tokenizer: Tokenizer) -> None:
    tokens = encode(documents("# newdoc", *DON_T, "", *DU, ""), tokenizer)
    label = tokens.labels["upos"]
    assert tokens.start is not None and tokens.end is not None
    for word, tag in ((" pain", "NOUN"), ("😀", "SYM"), ("I", "PRON"), ("du", None)):
        at = tokens.text.index(word.encode())
        mine = (tokens.start < at + len(word.encode())) & (tokens.end > at)
        assert mine.any()
        assert {label.names[code] if code >= 0 else None for code in label.codes[mine]} == {tag}


@pytest.mark.parametrize(
    ("rows", "line", "match"),
    [
        (["1\ttoo\tfew"], 1, "3 columns by tabs instead of the 10"),
        (["1 with spaces _ _ _ _ _ _ _ _"], 1, "1 columns"),
        ([row("1", "a"), row("3", "b")], 2, "the id 3 stands where 2 should"),
        ([row("2", "a")], 1, "the id 2 stands where 1 should"),
        ([row("x", "a")], 1, "the id 'x' is not a number"),
        ([row("1", "")], 1, "the form is empty"),
        ([row("1-2", "ab"), row("1", "a")], 1, "the words 1 to 2 of the token 1-2 do not follow it"),
        ([row("1-2", "ab"), row("1", "a"), row("3", "b")], 1, "do not follow"),
        ([row("2-1", "ab"), row("1", "a")], 1, "stands where"),
        (["# a comment", "", row("1", "a"), row("1", "b")], 4, "stands where 2 should"),
    ],
)
def test_a_fault_is_named_by_its_line(rows: list[str], line: int, match: str) -> None:
    with pytest.raises(InputError, match=rf"^t\.conllu, line {line}: .*{match}"):
        documents(*rows)
