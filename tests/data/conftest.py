"""One small tokenizer for the tests of the data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from moescope.data.base import Document

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SAMPLE = (
    "def read(path):\n    return open(path)  # the whole file\n\nclass Reader:\n    pass\n",
    "The reader returns the whole of the file, and the class is a kind of thing.\r\nNaïve café, “quotes” — 的 😀.\n",
    "template <typename T> class Reader { public: T read() const; };\n",
)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    from moescope.data.tokenizer import train_tokenizer

    return train_tokenizer([Document(str(index), text * 3) for index, text in enumerate(SAMPLE)], 400)
