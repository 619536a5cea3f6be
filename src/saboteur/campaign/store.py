"""The store: a folder that holds one campaign's results and survives being killed at any moment.

::

    campaign.yaml          the campaign
    manifest.json          store version, campaign id, golden digest, versions
    golden.parquet         golden outputs and labels
    rounds/000.json        how many trials each stratum has before and after a round
    units/000-000017.parquet   observations of one work unit; immutable
    pairs/000-000017.parquet   raw outputs of the same unit, where they are kept
    quarantine/            damaged files, put aside

Contract: a file is complete or absent (written under a temporary name, flushed, renamed), a unit's content
is a pure function of the campaign, so writing one twice is harmless, and nothing is ever changed in place.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from saboteur.campaign.model import Campaign
from saboteur.errors import StoreError
from saboteur.outcomes.golden import Golden

STORE_VERSION = 1


@dataclass(frozen=True)
class Round:
    """One step of the plan: trials before[h] .. after[h] − 1 of every stratum h, cut into units."""

    number: int
    before: NDArray[np.int64]
    after: NDArray[np.int64]
    unit_trials: int

    @property
    def trials(self) -> int:
        """How many trials the round adds."""
        return int((self.after - self.before).sum())

    @property
    def units(self) -> int:
        """How many work units."""
        return -(-self.trials // self.unit_trials)

    def slices(self, unit: int) -> list[tuple[int, int, int]]:
        """The (stratum, start, stop) pieces of a unit."""
        ends = np.cumsum(self.after - self.before)
        first, last = unit * self.unit_trials, min((unit + 1) * self.unit_trials, self.trials)
        pieces = []
        for h in range(int(np.searchsorted(ends, first, side="right")), len(ends)):
            begin = int(ends[h] - (self.after[h] - self.before[h]))
            lo, hi = max(first, begin) - begin, min(last, int(ends[h])) - begin
            if hi > lo:
                pieces.append((h, int(self.before[h]) + lo, int(self.before[h]) + hi))
            if ends[h] >= last:
                break
        return pieces


@dataclass(frozen=True)
class Store:
    """A result folder."""

    path: Path

    @classmethod
    def create(cls, path: Path, campaign: Campaign, campaign_id: str, golden: Golden) -> Store:
        """Begin a store, or take up the one that is there if it is of the same campaign and golden run.

        Raises:
            StoreError: when the folder holds another campaign's results or something else.
        """
        store = cls(path)
        if (path / "manifest.json").exists():
            store.require(campaign_id, golden)
        elif path.exists() and any(path.iterdir()) and not (path / "golden.parquet").exists():
            raise StoreError(f"store: {path} exists and is not a result store; choose another folder")
        else:
            for folder in ("rounds", "units"):
                (path / folder).mkdir(parents=True, exist_ok=True)
            store._write_golden(golden)
            manifest = {
                "store_version": STORE_VERSION,
                "campaign_id": campaign_id,
                "golden_digest": golden.digest,
                "environment": golden.environment,
                "versions": {name: version(name) for name in ("saboteur", "numpy", "pyarrow", "scipy")},
                "python": platform.python_version(),
            }
            store._write("manifest.json", lambda tmp: tmp.write_text(json.dumps(manifest, indent=1)))
        store._write("campaign.yaml", lambda tmp: tmp.write_text(campaign.to_yaml(), encoding="utf-8"))
        return store

    @classmethod
    def open(cls, path: Path) -> Store:
        """Open an existing store.

        Raises:
            StoreError: when there is none, or it is of a newer version.
        """
        store = cls(path)
        if not (path / "manifest.json").exists():
            raise StoreError(f"store: {path} is not a result store (it has no manifest.json)")
        if store.manifest["store_version"] != STORE_VERSION:
            raise StoreError(
                f"store: {path} has version {store.manifest['store_version']}; this release reads {STORE_VERSION}"
            )
        return store

    @property
    def manifest(self) -> dict:
        """Versions, ids and hashes."""
        try:
            return json.loads((self.path / "manifest.json").read_text())
        except (OSError, ValueError) as error:
            raise StoreError(f"store: cannot read {self.path / 'manifest.json'}: {error}") from error

    @property
    def campaign(self) -> Campaign:
        """The campaign as it was last run."""
        return Campaign.from_yaml(self.path / "campaign.yaml")

    @property
    def id(self) -> str:
        """The campaign id."""
        return self.manifest["campaign_id"]

    def require(self, campaign_id: str, golden: Golden) -> None:
        """Refuse to mix results.

        Raises:
            StoreError: when the store is of another campaign, or its golden run was another.
        """
        manifest = self.manifest
        if manifest["campaign_id"] != campaign_id:
            raise StoreError(
                f"store: {self.path} holds campaign {manifest['campaign_id']}, not {campaign_id}; what decides the "
                "answers (target, data, faults, stratification, criteria, seed) has changed. Use another folder"
            )
        if manifest["golden_digest"] != golden.digest:
            here, there = golden.environment, manifest["environment"]
            changed = {k: (there.get(k), here.get(k)) for k in {*here, *there} if here.get(k) != there.get(k)}
            raise StoreError(
                f"store: {self.path} was begun with another golden run"
                + (f"; changed since: {changed}" if changed else " in the same environment: the target is not stable")
                + ". Results of different golden runs do not merge; use another folder"
            )

    def golden(self) -> Golden:
        """The golden run of the store."""
        table = self._read(self.path / "golden.parquet")
        if table is None:
            raise StoreError(f"store: {self.path / 'golden.parquet'} is damaged; start again in another folder")
        meta = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
        shape = json.loads(meta["shape"])
        outputs = table["output"].combine_chunks().flatten().to_numpy().reshape(shape)
        labels = table["label"].to_numpy() if "label" in table.column_names else None
        return Golden(outputs, labels, meta["kind"], self.manifest["environment"])  # type: ignore[arg-type]

    def _write_golden(self, golden: Golden) -> None:
        flat = golden.outputs.reshape(golden.inputs, -1)
        columns: dict = {"output": pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), flat.shape[1])}
        if golden.labels is not None:
            columns["label"] = golden.labels.astype(np.int64)
        meta = {"shape": json.dumps(golden.outputs.shape), "kind": golden.kind}
        self._write("golden.parquet", lambda tmp: _write_parquet(pa.table(columns, metadata=meta), tmp))

    def rounds(self) -> list[Round]:
        """The rounds decided so far, in order."""
        rounds = []
        for path in sorted((self.path / "rounds").glob("*.json")):
            data = json.loads(path.read_text())
            rounds.append(
                Round(
                    int(path.stem), np.array(data["before"]), np.array(data["after"]), unit_trials=data["unit_trials"]
                )
            )
        return rounds

    def add_round(self, before: NDArray[np.int64], after: NDArray[np.int64], unit_trials: int) -> Round:
        """Decide on a further round."""
        step = Round(len(self.rounds()), before, after, unit_trials)
        data = {"before": before.tolist(), "after": after.tolist(), "unit_trials": unit_trials}
        self._write(f"rounds/{step.number:03d}.json", lambda tmp: tmp.write_text(json.dumps(data)))
        return step

    def unit_path(self, step: int, unit: int, kind: str = "units") -> Path:
        """Where a unit's observations (or raw ``pairs``) lie."""
        return self.path / kind / f"{step:03d}-{unit:06d}.parquet"

    def done(self, step: Round) -> set[int]:
        """The finished units of a round; a damaged one is put aside and counts as not done."""
        finished = set()
        for path in (self.path / "units").glob(f"{step.number:03d}-*.parquet"):
            try:
                if pq.read_metadata(path).num_rows == sum(b - a for _, a, b in step.slices(int(path.stem[4:]))):
                    finished.add(int(path.stem[4:]))
                    continue
            except (OSError, pa.ArrowException):
                pass
            self.quarantine(path)
        return finished

    def write_unit(self, step: int, unit: int, table: pa.Table, pairs: pa.Table | None) -> None:
        """Store a finished unit; raw pairs first, so that a unit that is there is whole.

        Raises:
            StoreError: when the disk is full or the folder cannot be written; what was stored stays.
        """
        if pairs is not None:
            (self.path / "pairs").mkdir(exist_ok=True)
            name = self.unit_path(step, unit, "pairs").relative_to(self.path)
            self._write(str(name), lambda tmp: _write_parquet(pairs, tmp))
        name = self.unit_path(step, unit).relative_to(self.path)
        self._write(str(name), lambda tmp: _write_parquet(table, tmp))

    def read_unit(self, step: int, unit: int) -> tuple[pa.Table, pa.Table | None]:
        """A finished unit's observations and, where they are kept, its raw pairs.

        Raises:
            StoreError: when a file is damaged; it is put aside, and running the campaign again restores it.
        """
        table = self._read(self.unit_path(step, unit))
        path = self.unit_path(step, unit, "pairs")
        pairs = self._read(path) if path.exists() else None
        if table is None or (pairs is None and path.exists()):
            raise StoreError(f"store: unit {step:03d}-{unit:06d} of {self.path} is damaged; run the campaign again")
        return table, pairs

    def tables(self, kind: str = "units", batch: int = 256) -> Iterator[pa.Table]:
        """The observations of all finished units in order, some hundred units at a time."""
        paths = sorted((self.path / kind).glob("*.parquet"))
        for start in range(0, len(paths), batch):
            read = [self._read(path) for path in paths[start : start + batch]]
            if whole := [table for table in read if table is not None]:
                yield pa.concat_tables(whole, promote_options="permissive")

    def quarantine(self, path: Path) -> None:
        """Put a damaged file aside; its unit will be run again."""
        (self.path / "quarantine").mkdir(exist_ok=True)
        path.rename(self.path / "quarantine" / path.name)

    def _read(self, path: Path) -> pa.Table | None:
        """The table in ``path``; ``None`` where it is damaged, and then a unit's file is put aside."""
        try:
            table = pq.ParquetFile(path).read(use_threads=False)
            if (table.schema.metadata or {}).get(_DIGEST) == _digest(table):
                return table
        except (OSError, ValueError, pa.ArrowException):
            pass
        if path.parent.name in ("units", "pairs"):
            self.quarantine(path)
        return None

    def _write(self, name: str, write: Callable[[Path], object]) -> None:
        target = self.path / name
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            write(temporary)
            with temporary.open("rb+") as stream:
                os.fsync(stream.fileno())
            temporary.replace(target)
        except OSError as error:
            raise StoreError(
                f"store: cannot write {target}: {error.strerror or error}; what was finished before is kept, and "
                "the same command goes on from there"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)


_DIGEST = b"digest"


def _write_parquet(table: pa.Table, path: Path) -> None:
    metadata = (table.schema.metadata or {}) | {_DIGEST: _digest(table)}
    pq.write_table(table.replace_schema_metadata(metadata), path, compression="zstd")


def _digest(table: pa.Table) -> bytes:
    """A hash of names, types and values: Parquet's page checksums leave some damage unnoticed."""
    digest = hashlib.blake2b(digest_size=16)
    for name in table.column_names:
        column = table[name].combine_chunks()
        digest.update(column.is_valid().to_numpy(zero_copy_only=False).tobytes())
        if pa.types.is_fixed_size_list(column.type):
            column = column.flatten()
        digest.update(f"{name}\x1f{column.type}\x1f{len(column)}\x1f".encode())
        if pa.types.is_string(column.type):
            digest.update(json.dumps(column.to_pylist()).encode())
        else:
            digest.update(column.fill_null(0).to_numpy(zero_copy_only=False).tobytes())
    return digest.hexdigest().encode()
