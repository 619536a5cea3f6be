"""Scores a finished campaign anew under other criteria, from the raw outputs it kept; nothing is injected."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from saboteur.campaign.results import Results
from saboteur.campaign.store import Store
from saboteur.errors import CampaignError
from saboteur.outcomes.criteria import Criterion
from saboteur.outcomes.recorder import rescore as rescored


def rescore(results: Results, criteria: Sequence[Criterion], path: Path) -> Store:
    """Write a store at ``path`` that is what the campaign would have given under ``criteria``.

    A requirement or stopping rule on a criterion that is no longer there is dropped.

    Raises:
        CampaignError: when the campaign kept no raw outputs.
        TargetError: when a criterion does not fit the outputs.
        StoreError: when ``path`` holds something else.
    """
    campaign, session = results.campaign, results.session
    if not campaign.keep_outputs:
        raise CampaignError(
            "keep_outputs: the campaign kept counts only, under "
            + ", ".join(c.name for c in campaign.criteria)
            + "; run it with keep_outputs: true to re-score it under other criteria"
        )
    for criterion in criteria:
        criterion.check(session.golden)
    names = {criterion.name for criterion in criteria}
    changed: dict = {"criteria": tuple(criteria), "name": f"{campaign.name} (re-scored)"}
    for field in ("requirement", "stopping"):
        asked = getattr(campaign, field)
        changed[field] = asked if asked is not None and asked.criterion in names else None
    new = campaign.model_copy(update=changed)
    store = Store.create(
        path, new, new.identity(session.target.fingerprint, session.sampler.list_digest), session.golden
    )
    for step in results.store.rounds():
        if step.number >= len(store.rounds()):
            store.add_round(step.before, step.after, step.unit_trials)
        for unit in sorted(results.store.done(step) - store.done(step)):
            table, pairs = results.store.read_unit(step.number, unit)
            store.write_unit(step.number, unit, rescored(pairs, table, session.golden, criteria), pairs)
    return store
