"""One assessment: the campaign as a value, its plan, its runner, its store, its results.

- :mod:`~saboteur.campaign.model`: the :class:`Campaign` value and its YAML file
- :mod:`~saboteur.campaign.target`: the seam to the levels
- :mod:`~saboteur.campaign.sampler`, :mod:`~saboteur.campaign.plan`: which faults, and how many
- :mod:`~saboteur.campaign.runner`, :mod:`~saboteur.campaign.store`: running, resuming, keeping
- :mod:`~saboteur.campaign.results`, :mod:`~saboteur.campaign.comparison`: what came of it
- :mod:`~saboteur.campaign.replay`, :mod:`~saboteur.campaign.rescoring`, :mod:`~saboteur.campaign.forecast`
"""

from saboteur.campaign.comparison import Comparison, compare
from saboteur.campaign.forecast import Forecast, forecast
from saboteur.campaign.model import Campaign, Exhaustive, Fixed, Listed, Requirement, Statistical, Stopping
from saboteur.campaign.replay import Replay, replay
from saboteur.campaign.rescoring import rescore
from saboteur.campaign.results import Results
from saboteur.campaign.runner import Progress, Session, run
from saboteur.campaign.store import Store
from saboteur.campaign.target import FaultSpec, Resources, Target, TargetSpec

__all__ = [
    "Campaign",
    "Comparison",
    "Exhaustive",
    "FaultSpec",
    "Fixed",
    "Forecast",
    "Listed",
    "Progress",
    "Replay",
    "Requirement",
    "Resources",
    "Results",
    "Session",
    "Statistical",
    "Stopping",
    "Store",
    "Target",
    "TargetSpec",
    "compare",
    "forecast",
    "replay",
    "rescore",
    "run",
]
