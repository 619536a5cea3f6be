"""How long a campaign will take, from a short pilot that is thrown away."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

import numpy as np

from saboteur.campaign.runner import Session


@dataclass(frozen=True)
class Forecast:
    """A prediction from ``pilot`` trials that took ``pilot_s`` seconds in one worker."""

    pilot: int
    pilot_s: float
    trials: int
    workers: int

    @property
    def seconds(self) -> float:
        """Predicted duration of all planned trials."""
        return self.pilot_s / self.pilot * self.trials / self.workers


def forecast(session: Session, seconds: float = 3.0) -> Forecast:
    """Time trials drawn over all strata in proportion to the plan, for about ``seconds``."""
    plan, sampler = session.plan, session.sampler
    share = np.cumsum(plan.n) / plan.n.sum()
    batch, done, begun = 4, 0, perf_counter()
    while True:
        # Evenly spread positions over the plan, so that slow and fast strata take part as they will.
        strata = np.searchsorted(share, (np.arange(batch) + 0.5) / batch)
        for h in np.unique(strata):
            count = min(int((strata == h).sum()), int(plan.n[h]))
            session.run(sampler.faults(int(h), 0, count))
            done += count
        elapsed = perf_counter() - begun
        if elapsed >= seconds or done >= plan.n.sum():
            return Forecast(done, elapsed, int(plan.n.sum()), session.campaign.resources.workers)
        batch *= 2
