"""Sources of labelled data. `CORPORA` is the registry: one class per file."""

from moescope.data.base import Corpus
from moescope.data.clusters import ClustersCorpus
from moescope.data.corrupted import CorruptedCorpus
from moescope.data.digits import DigitsCorpus
from moescope.data.ginc import GincCorpus
from moescope.data.hub import HubCorpus
from moescope.data.installed import InstalledCorpus
from moescope.data.regressions import RegressionsCorpus
from moescope.data.text import TextFiles

CORPORA: dict[str, type[Corpus]] = {
    "installed": InstalledCorpus,
    "digits": DigitsCorpus,
    "clusters": ClustersCorpus,
    "regressions": RegressionsCorpus,
    "ginc": GincCorpus,
    "text": TextFiles,
    "hub": HubCorpus,
    "corrupted": CorruptedCorpus,
}
