"""The contract of a target: what every campaign relies on, whatever the level."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from saboteur.campaign.target import FaultSpec, Target
from saboteur.errors import TargetError
from saboteur.faults import draws
from saboteur.faults.space import Faults, FaultSpace
from saboteur.outcomes.criteria import STANDARD, Criterion, NumericError
from saboteur.outcomes.golden import Golden
from saboteur.outcomes.recorder import COUNTS, Recorder

_SEED = 20_230_417


def draw_faults(space: FaultSpace, trials: int, rows: int = 1, seed: int = _SEED) -> Faults:
    """``trials`` trials of ``rows`` faults each, drawn from the whole space without replacement if it has enough."""
    whole = space.strata("network")[0]
    count = trials * rows
    number = np.arange(count) % whole.size
    region, element, step, variant = space.decode(whole, draws.permuted(seed, whole.size, number))
    keys = draws.words(seed, np.arange(trials))
    return Faults(keys, np.repeat(np.arange(trials), rows), region.astype(np.int32), element, step, variant)


class TargetContract:
    """Tests that every target passes; subclass it and say how to open the target.

    Attributes:
        trials: how many single-fault trials are drawn from the space.
        criteria: under which faults are judged; the default takes those that suit the golden run.
    """

    trials = 12
    criteria: tuple[Criterion, ...] = (*STANDARD, NumericError(tolerance=1e-3))

    def open(self) -> Target:
        """A newly opened target; its fault-free runs are alike each time."""
        raise NotImplementedError

    def open_changed(self) -> Target:
        """The same target but for a stored value that changes its answers."""
        raise NotImplementedError

    def specs(self) -> Sequence[FaultSpec]:
        """Faults of every kind that the target is tested with."""
        raise NotImplementedError

    def state(self, target: Target) -> bytes:
        """Everything that an injection must leave as it was."""
        return target.golden().digest.encode()

    @pytest.fixture(scope="class")
    @classmethod
    def target(cls, request: pytest.FixtureRequest) -> Target:
        """One target for all tests of the class, which thus also see that none leaves a trace."""
        target = cls().open()
        request.addfinalizer(target.close)
        return target

    @pytest.fixture(scope="class")
    @classmethod
    def golden(cls, target: Target) -> Golden:
        """Its golden run."""
        return target.golden()

    @pytest.fixture(scope="class")
    @classmethod
    def space(cls, target: Target) -> FaultSpace:
        """Its fault space."""
        return target.space(cls().specs())

    @pytest.fixture(scope="class")
    @classmethod
    def faults(cls, space: FaultSpace) -> Faults:
        """Single faults from all of the space."""
        return draw_faults(space, cls.trials)

    def observe(
        self,
        target: Target,
        golden: Golden,
        space: FaultSpace,
        faults: Faults,
        inputs: NDArray[np.int64] | None = None,
    ) -> tuple[pa.Table, dict[tuple[int, int], bytes]]:
        """The recorder's table, and the raw output of each (trial, input) that is not golden."""
        recorder = Recorder(golden, self._criteria(golden), faults.trials, inputs, keep_outputs=True)
        target.inject(space, faults, recorder)
        table, pairs = recorder.table(), recorder.pairs()
        width = pairs["output"].type.list_size
        outputs = pairs["output"].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
        names = zip(pairs["trial"].to_pylist(), pairs["input"].to_pylist(), strict=True)
        return table, {name: row.tobytes() for name, row in zip(names, outputs, strict=True)}

    def _criteria(self, golden: Golden) -> list[Criterion]:
        suitable = []
        for criterion in self.criteria:
            with contextlib.suppress(TargetError):
                criterion.check(golden)
                suitable.append(criterion)
        return suitable

    def test_two_golden_runs_agree(self, target: Target, golden: Golden) -> None:
        """Bit for bit, and in what they say of the environment."""
        again = target.golden()
        assert again.outputs.tobytes() == golden.outputs.tobytes()
        assert again.digest == golden.digest

    def test_what_is_not_computed_changes_no_verdict(
        self, target: Target, golden: Golden, space: FaultSpace, faults: Faults
    ) -> None:
        """Where outputs need not be kept, a target may prove bounds, or predict, instead of computing them.

        What it computes may then be rounded another way, in sums of another order.
        """
        criteria = self._criteria(golden)
        assert criteria
        computed, _ = self.observe(target, golden, space, faults)
        recorder = Recorder(golden, criteria, faults.trials)
        target.inject(space, faults, recorder)
        table = recorder.table()
        counted = [name for name in table.column_names if name.startswith("sdc:") or name == "correct"]
        for name in (*counted, "nonfinite", "crash", "hang", "detected"):
            assert table[name].to_pylist() == computed[name].to_pylist(), name
        exact, bound = (t["max_abs_error"].to_numpy() for t in (computed, table))
        predicted = table["screened"].to_numpy() > 0
        assert ((bound >= exact * (1 - 1e-5) - 1e-6) | predicted).all()

    def test_empty_trials_give_golden(self, target: Target, golden: Golden, space: FaultSpace, faults: Faults) -> None:
        """A trial without faults changes nothing, alone and between others."""
        mixed = Faults(
            draws.words(1, np.arange(3)),
            np.ones(1, np.int64),
            faults.region[:1],
            faults.element[:1],
            faults.step[:1],
            faults.variant[:1],
        )
        table, _ = self.observe(target, golden, space, mixed)
        identical = table["identical"].to_pylist()
        assert identical[0] == identical[2] == golden.inputs

    def test_some_fault_is_seen(self, target: Target, golden: Golden, space: FaultSpace, faults: Faults) -> None:
        """Else the other tests say little."""
        table, _ = self.observe(target, golden, space, faults)
        assert table["invalid"].null_count == faults.trials
        assert (table["identical"].to_numpy() < golden.inputs).any()

    def test_trials_do_not_depend_on_each_other(
        self, target: Target, golden: Golden, space: FaultSpace, faults: Faults
    ) -> None:
        """All at once equals one by one, in another order."""
        together, outputs = self.observe(target, golden, space, faults)
        for trial in reversed(range(faults.trials)):
            alone, outputs_alone = self.observe(target, golden, space, faults.take([trial]))
            _assert_same(together.slice(trial, 1), alone)
            assert outputs_alone == {(0, i): value for (t, i), value in outputs.items() if t == trial}
        order = np.argsort(draws.words(3, np.arange(faults.trials)))
        shuffled, _ = self.observe(target, golden, space, faults.take(order))
        _assert_same(together.take(order), shuffled)

    def test_trials_are_functions_of_their_columns(
        self, target: Target, golden: Golden, space: FaultSpace, faults: Faults
    ) -> None:
        """The same columns give the same outputs, also in a target opened anew with a space made anew."""
        first = self.observe(target, golden, space, faults)
        other = self.open()
        second = self.observe(other, other.golden(), other.space(self.specs()), faults)
        other.close()
        _assert_same(first[0], second[0])
        assert first[1] == second[1]

    def test_a_choice_of_inputs_gives_the_same_outputs(
        self, target: Target, golden: Golden, space: FaultSpace, faults: Faults
    ) -> None:
        """What a fault does to an input does not depend on which other inputs are asked for."""
        _, everything = self.observe(target, golden, space, faults)
        chosen = np.array(
            [
                np.sort(draws.permuted(trial, golden.inputs, np.arange(min(3, golden.inputs))))
                for trial in range(faults.trials)
            ]
        )
        table, some = self.observe(target, golden, space, faults, chosen)
        assert some == {
            (trial, i): everything[trial, i]
            for trial in range(faults.trials)
            for i in chosen[trial].tolist()
            if (trial, i) in everything
        }
        assert table["inferences"].to_pylist() == [chosen.shape[1]] * faults.trials

    def test_many_faults_in_a_trial(self, target: Target, golden: Golden, space: FaultSpace) -> None:
        """Faults from all over the space act together; every pair is accounted for."""
        table, outputs = self.observe(target, golden, space, draw_faults(space, 3, rows=5))
        kept = np.bincount([trial for trial, _ in outputs], minlength=3) if outputs else np.zeros(3, int)
        ended = sum(table[name].to_numpy() for name in ("identical", "crash", "hang", "detected"))
        assert (ended + kept == golden.inputs).all()
        assert set(COUNTS) <= set(table.column_names)

    def test_restored_after_injection(self, target: Target, golden: Golden, space: FaultSpace, faults: Faults) -> None:
        """Bit for bit as it was found."""
        before = self.state(target)
        self.observe(target, golden, space, faults)
        assert self.state(target) == before

    def test_restored_after_an_exception(
        self, target: Target, golden: Golden, space: FaultSpace, faults: Faults
    ) -> None:
        """An exception that passes through an injection leaves nothing behind."""

        class Stop(Exception):
            pass

        class Refuses(Recorder):
            def outputs(self, *_: object) -> None:
                raise Stop

            identical = bounded = screened = abnormal = outputs

        before = self.state(target)
        for trial in range(faults.trials):
            with pytest.raises(Stop):
                target.inject(space, faults.take([trial]), Refuses(golden, self._criteria(golden), 1))
            assert self.state(target) == before
        assert target.golden().digest == golden.digest

    @pytest.mark.parametrize("by", ["network", "layer", "bit", "layer_bit", "site", "component"])
    def test_strata_partition_the_space(self, space: FaultSpace, by: str) -> None:
        """Each fault has one number in one stratum, and comes back from it."""
        strata = space.strata(by)
        assert sum(stratum.size for stratum in strata) == space.size
        for stratum in strata:
            index = np.unique(np.linspace(0, stratum.size - 1, 50).astype(np.int64))
            fault = space.decode(stratum, index)
            assert (space.encode(stratum, *fault) == index).all()
            for other in strata:
                assert other is stratum or (space.encode(other, *fault) == -1).all()

    def test_specs_give_the_same_space(self, target: Target, space: FaultSpace) -> None:
        """A space made twice numbers its faults alike; sites are of the shapes they say."""
        again = target.space(self.specs())
        assert again == space
        assert all(region.steps >= 1 and region.elements >= 1 for region in space.regions)

    def test_fingerprint(self, target: Target) -> None:
        """Stable over openings; another for other weights."""
        again, changed = self.open(), self.open_changed()
        assert again.fingerprint == target.fingerprint
        assert changed.fingerprint != target.fingerprint
        again.close()
        changed.close()

    def test_stored_words(self, target: Target, space: FaultSpace) -> None:
        """A memory's words fit its format; what holds no stored value says so."""
        for region in space.regions:
            try:
                words, fmt = target.stored(region)
            except TargetError as error:
                assert region.site in str(error)
            else:
                assert words.shape == (region.elements,) and words.dtype == np.uint64
                assert fmt.bits == region.format.bits
                assert (words >> np.uint64(fmt.bits - 1) <= np.uint64(1)).all()
                assert np.isfinite(fmt.decode(words)).all()

    def test_trace_ends_with_what_inject_observes(
        self, target: Target, golden: Golden, space: FaultSpace, faults: Faults
    ) -> None:
        """The last place of a trace is the output."""
        inputs = np.arange(faults.trials)[:, None] % golden.inputs
        table, outputs = self.observe(target, golden, space, faults, inputs)
        for trial in range(faults.trials):
            if table["crash"][trial].as_py() or table["hang"][trial].as_py():
                continue
            traced = target.trace(space, faults.take([trial]), int(inputs[trial, 0]))
            last = {name: traced[name][-1].as_py() for name in traced.column_names}
            assert (last["changed"] > 0) == ((trial, int(inputs[trial, 0])) in outputs)
            assert (last["nonfinite"] > 0) == (table["nonfinite"][trial].as_py() == 1)
            if not last["nonfinite"]:
                assert last["max_abs_error"] == pytest.approx(table["max_abs_error"][trial].as_py())


def _assert_same(first: pa.Table, second: pa.Table) -> None:
    assert first.column_names == second.column_names
    for name in first.column_names:
        one, other = first[name].to_pylist(), second[name].to_pylist()
        assert one == (pytest.approx(other, rel=1e-9) if pa.types.is_floating(first[name].type) else other), name
