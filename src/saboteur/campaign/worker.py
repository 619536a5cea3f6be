"""A further process that helps with a running campaign over a shared folder.

The process that runs the campaign decides on rounds and takes their units from the front; helpers take them
from the back, each after an exclusive claim, a file ``claims/000-000017`` that holds who made it. A claim
that has not been renewed for :data:`EXPIRES_S` is void. Claims only spare work: a unit's content is a pure
function of the campaign, so that two who run the same one write the same bytes.
"""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep, time

from saboteur.campaign.runner import Session
from saboteur.campaign.store import Round, Store
from saboteur.campaign.target import Resources

EXPIRES_S = 60.0
"""A claim older than this is void; it is renewed three times in that time while its unit runs."""

_POLL_S = 0.5


def help_with(
    path: Path,
    *,
    threads: int | None = None,
    device: str | None = None,
    wait_s: float = 60.0,
    on_unit: Callable[[int, int], None] = lambda units, trials: None,
) -> tuple[int, int]:
    """Run units of the rounds of the store at ``path`` until there has been none to run for ``wait_s`` seconds.

    Args:
        path: the store, begun by the process that runs the campaign.
        threads: CPU threads, instead of the campaign's.
        device: device, instead of the campaign's; one that gives other golden outputs is refused.
        wait_s: how long to wait for further work.
        on_unit: called after each unit with the numbers of units and trials so far.

    Returns:
        How many units and trials were run.

    Raises:
        StoreError: when there is no store, or this machine gives another golden run.
    """
    store = Store.open(path)
    campaign = store.campaign
    changed = {name: value for name, value in {"threads": threads, "device": device}.items() if value is not None}
    resources = Resources.model_validate(campaign.resources.model_dump() | changed)
    units = trials = 0
    with Session.open(campaign.model_copy(update={"resources": resources})) as session:
        store.require(session.id, session.golden)
        last_work = monotonic()
        while True:
            worked = False
            for step, unit in _open_units(store):
                with claim(store, step.number, unit) as claimed:
                    if not claimed or store.unit_path(step.number, unit).exists():
                        continue
                    store.write_unit(step.number, unit, *session.run_unit(step, unit))
                units, trials = units + 1, trials + sum(stop - start for _, start, stop in step.slices(unit))
                on_unit(units, trials)
                worked, last_work = True, monotonic()
            if not worked:
                if monotonic() - last_work >= wait_s:
                    return units, trials
                sleep(min(_POLL_S, wait_s))


def _open_units(store: Store) -> Iterator[tuple[Round, int]]:
    """Units that are not there yet, the last of the last round first."""
    for step in reversed(store.rounds()):
        finished = store.done(step)
        yield from ((step, unit) for unit in reversed(range(step.units)) if unit not in finished)


@contextmanager
def claim(store: Store, step: int, unit: int) -> Iterator[bool]:
    """Claim a unit; yields whether it is ours. A claim of ours is renewed while it is held, then given back."""
    path = store.path / "claims" / f"{step:03d}-{unit:06d}"
    if not _take(path):
        yield False
        return
    done = threading.Event()
    renewer = threading.Thread(target=_renew, args=(path, done), daemon=True)
    renewer.start()
    try:
        yield True
    finally:
        done.set()
        renewer.join()
        path.unlink(missing_ok=True)


def _take(path: Path) -> bool:
    path.parent.mkdir(exist_ok=True)
    try:
        with path.open("x") as stream:
            stream.write(f"{platform.node()} {os.getpid()}\n")
        return True
    except FileExistsError:
        pass
    try:
        void = time() - path.stat().st_mtime > EXPIRES_S
    except FileNotFoundError:
        return False
    if not void:
        return False
    # Only one of those who see the void claim can rename it; the others find it gone.
    aside = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return False
    aside.unlink()
    return _take(path)


def _renew(path: Path, done: threading.Event) -> None:
    while not done.wait(EXPIRES_S / 3):
        with suppress(OSError):
            os.utime(path)
