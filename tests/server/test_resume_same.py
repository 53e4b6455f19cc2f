"""A run resumed by its preset's name must be that preset's run; the difference is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from moescope.errors import InputError
from moescope.store import Store
from moescope_server.starting import create_run, plan_run
from moescope_server.training import require_same


def test_the_same_preset_and_settings_are_accepted_and_another_is_named(home: Path) -> None:
    store = Store(home)
    try:
        run = create_run(store, plan_run(store, "lm-small", {"optim.steps": 50}), None)
        require_same(run, "lm-small", {"optim.steps": 50})
        with pytest.raises(InputError, match=r"optim\.steps is 50 there, and 60 in what you gave"):
            require_same(run, "lm-small", {"optim.steps": 60})
    finally:
        store.close()
