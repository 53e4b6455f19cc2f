"""What the routing of a trace amounts to, each number beside its null. Importing this imports no torch."""

from moescope.metrics.base import Measurement, Metric
from moescope.metrics.dead_fraction import DeadFraction
from moescope.metrics.effective_experts import EffectiveExperts
from moescope.metrics.load_cv import LoadCV
from moescope.metrics.load_entropy import LoadEntropy
from moescope.metrics.load_ratio import LoadRatio
from moescope.metrics.margin import Margin
from moescope.metrics.maxvio import MaxVio
from moescope.metrics.measuring import measure
from moescope.metrics.mutual_information import MutualInformation
from moescope.metrics.routing_entropy import RoutingEntropy
from moescope.metrics.routing_jsd import RoutingJSD, RoutingJSDFull
from moescope.metrics.silhouette import Silhouette, SilhouetteCosine
from moescope.metrics.view import alive_experts
from moescope.metrics.within_between import WithinBetween

METRICS: dict[str, type[Metric]] = {
    "load_ratio": LoadRatio,
    "maxvio": MaxVio,
    "load_cv": LoadCV,
    "dead_fraction": DeadFraction,
    "load_entropy": LoadEntropy,
    "routing_entropy": RoutingEntropy,
    "effective_experts": EffectiveExperts,
    "margin": Margin,
    "mutual_information": MutualInformation,
    "routing_jsd": RoutingJSD,
    "routing_jsd_full": RoutingJSDFull,
    "silhouette": Silhouette,
    "silhouette_cosine": SilhouetteCosine,
    "within_between": WithinBetween,
}

__all__ = ["METRICS", "Measurement", "Metric", "alive_experts", "measure"]
