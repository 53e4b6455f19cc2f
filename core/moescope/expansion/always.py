"""Every added expert stays."""

from __future__ import annotations

from dataclasses import dataclass

from moescope.config import Config
from moescope.expansion.base import Acceptor


@dataclass(frozen=True, kw_only=True)
class AlwaysConfig(Config):
    """Nothing to choose."""


class Always(Acceptor):
    """What was added stays, but for pruning at the end."""

    Config = AlwaysConfig
    rule = "every added expert stays"
    source = "MASS 2512.19765, without its removal step"
