"""Computed once, kept within limits; and JSON as this server writes it."""

from __future__ import annotations

import json
import math
import threading
import time
from dataclasses import dataclass

import numpy as np
import pytest

from moescope_server.memo import Memo
from moescope_server.wire import encode


def test_many_who_ask_at_once_wait_for_one_computation() -> None:
    memo: Memo[int] = Memo(4)
    made: list[int] = []

    def make() -> int:
        time.sleep(0.05)
        made.append(1)
        return 7

    found: list[int] = []
    askers = [threading.Thread(target=lambda: found.append(memo.get("key", make))) for _ in range(8)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert found == [7] * 8 and made == [1]


def test_different_keys_do_not_wait_for_each_other() -> None:
    memo: Memo[str] = Memo(4)
    begun, go = threading.Event(), threading.Event()

    def slow() -> str:
        begun.set()
        assert go.wait(10)
        return "slow"

    asker = threading.Thread(target=memo.get, args=("slow", slow))
    asker.start()
    begun.wait(10)
    assert memo.get("quick", lambda: "quick") == "quick"
    go.set()
    asker.join()


def test_the_least_recently_used_goes_first_by_weight() -> None:
    memo: Memo[str] = Memo(10, len)
    for key in "abc":
        memo.get(key, lambda: "xxx")
    memo.get("a", lambda: "again")
    memo.get("d", lambda: "xxx")  # 12 > 10: b goes
    assert memo.get("a", lambda: "again") == "xxx"
    assert memo.get("b", lambda: "again") == "again"
    assert memo.get("huge", lambda: "x" * 50) == "x" * 50  # larger than everything, and still answered


def test_an_error_is_not_kept() -> None:
    memo: Memo[int] = Memo(4)

    def fail() -> int:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        memo.get("key", fail)
    assert memo.get("key", lambda: 1) == 1


def test_json_is_strict_and_knows_numpy_and_dataclasses() -> None:
    @dataclass
    class Thing:
        value: float
        rows: np.ndarray

    value = {
        "a": Thing(math.nan, np.array([[1, 2]], np.int16)),
        "b": np.float32(0.5),
        "c": [math.inf],
        "d": np.bool_(True),
    }
    assert json.loads(encode(value)) == {"a": {"value": None, "rows": [[1, 2]]}, "b": 0.5, "c": [None], "d": True}
    assert json.loads(encode(np.array([1.0, np.nan]))) == [1.0, None]
    with pytest.raises(Exception, match="cannot be written as JSON"):
        encode(object())
