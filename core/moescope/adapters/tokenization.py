"""How text becomes tokens: the folder's own tokenizer.json, or bytes where there is none."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from moescope.errors import InputError
from moescope.files import shown

_MAX_BYTES = 64 << 20
_MAX_IDS = 1 << 24
_USUAL = b" \netaoinshrdlcumwfgypbvkxjqz0123456789.,_()=-:;'\"*/<>[]{}#&!?+%|@$^~`\\ABCDEFGHIJKLMNOPQRSTUVWXYZ\t"
"""Bytes of text, the usual ones first."""
UNUSUAL = "<other byte>"


def byte_tokenizer(vocab_size: int = 256) -> Tokenizer:
    """A tokenizer whose ids are the bytes of the text's UTF-8, 0 to 255.

    A smaller vocabulary of V ids holds the V - 1 usual bytes (`_USUAL`, then the others); the last id is all the rest.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet(), key=_byte_of)
    if vocab_size < len(letters):
        usual = [letters[byte] for byte in _USUAL] + [letter for i, letter in enumerate(letters) if i not in _USUAL]
        kept = [*usual[: vocab_size - 1], UNUSUAL]
        model = models.BPE(vocab={letter: index for index, letter in enumerate(kept)}, merges=[], unk_token=UNUSUAL)
    else:
        model = models.BPE(vocab={letter: byte for byte, letter in enumerate(letters)}, merges=[])
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _byte_of(letter: str) -> int:
    """The byte that a letter of the byte-level alphabet stands for (GPT-2's table: printable bytes are themselves)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return ord(letter) if ord(letter) < 256 else others[ord(letter) - 256]


def load_tokenizer(folder: Path) -> Tokenizer:
    """The folder's tokenizer.json. Raises `InputError` where the library cannot read it."""
    path = folder / "tokenizer.json"
    if path.stat().st_size > _MAX_BYTES:
        raise InputError(f"{folder.name}: tokenizer.json is larger than {_MAX_BYTES:,} bytes.")
    try:
        return parse_tokenizer(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise InputError(f"{folder.name}: tokenizer.json is not UTF-8.") from None


def parse_tokenizer(text: str) -> Tokenizer:
    """A tokenizer from the text of a tokenizer.json. Truncation and padding are switched off. Raises `InputError`."""
    try:
        tokenizer = Tokenizer.from_str(text)
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        # the library raises nothing narrower than Exception, and a panic of its Rust code is not even that
        raise InputError(f"tokenizer.json cannot be read: {shown(error, quote=False)}.") from None
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    if largest >= _MAX_IDS:
        raise InputError(f"tokenizer.json holds the token id {largest:,}; ids below {_MAX_IDS:,} are supported.")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
