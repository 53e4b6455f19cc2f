"""Growth of the set of experts while a model trains: detectors of drift, initialisers, acceptors, one controller."""

from __future__ import annotations

from moescope.expansion.always import Always
from moescope.expansion.base import Acceptor, Detector, Initialiser
from moescope.expansion.clone import Clone
from moescope.expansion.config import ExpansionConfig as ExpansionConfig
from moescope.expansion.never import Never

DETECTORS: dict[str, type[Detector]] = {
    "never": Never,
}

INITIALISERS: dict[str, type[Initialiser]] = {
    "clone": Clone,
}

ACCEPTORS: dict[str, type[Acceptor]] = {
    "always": Always,
}
