"""Growth of the set of experts while a model trains: detectors of drift, initialisers, acceptors, one controller."""

from __future__ import annotations

from moescope.expansion.always import Always
from moescope.expansion.base import Acceptor, Detector, Initialiser
from moescope.expansion.clone import Clone
from moescope.expansion.clone_direction import CloneDirection
from moescope.expansion.config import ExpansionConfig as ExpansionConfig
from moescope.expansion.conflict import Conflict
from moescope.expansion.coverage import Coverage
from moescope.expansion.mass import Mass
from moescope.expansion.never import Never
from moescope.expansion.nll_mask import NllMask
from moescope.expansion.page_hinkley import PageHinkley
from moescope.expansion.random_ import Random
from moescope.expansion.trial_then_keep import TrialThenKeep

DETECTORS: dict[str, type[Detector]] = {
    "mass": Mass,
    "conflict": Conflict,
    "page_hinkley": PageHinkley,
    "coverage": Coverage,
    "random": Random,
    "never": Never,
}

INITIALISERS: dict[str, type[Initialiser]] = {
    "clone": Clone,
    "clone_direction": CloneDirection,
}

ACCEPTORS: dict[str, type[Acceptor]] = {
    "nll_mask": NllMask,
    "trial_then_keep": TrialThenKeep,
    "always": Always,
}
