"""Trial i of a stratum is a pure function of (campaign, stratum, i)."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest

from saboteur.campaign import Session
from saboteur.errors import FaultError

COLUMNS = ("key", "trial", "region", "element", "step", "variant")


def same(a, b):
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in COLUMNS)


@pytest.mark.parametrize("changes", [{}, {"simultaneous": 5}, {"bit_error_rate": 0.003}])
def test_trials_do_not_depend_on_how_they_are_asked_for(toy_campaign, changes):
    with Session.open(toy_campaign(**changes)) as session:
        sampler = session.sampler
        whole = sampler.faults(1, 0, 50)
        assert same(whole, sampler.faults(1, 0, 50))
        for start, stop in ((0, 1), (7, 30), (49, 50)):
            assert same(whole.take(np.arange(start, stop)), sampler.faults(1, start, stop))
        assert np.array_equal(whole.take(np.arange(7, 30)).drawn, sampler.faults(1, 7, 30).drawn)


def test_a_stratum_is_sampled_without_replacement_to_its_end(toy_campaign):
    with Session.open(toy_campaign()) as session:
        stratum = session.sampler.strata[0]
        faults = session.sampler.faults(0, 0, stratum.size)
        index = session.space.encode(stratum, faults.region, faults.element, faults.step, faults.variant)
        assert sorted(index.tolist()) == list(range(stratum.size))


def test_seeds_and_strata_draw_differently(toy_campaign):
    with Session.open(toy_campaign()) as one, Session.open(toy_campaign(seed=1)) as two:
        assert not np.array_equal(one.sampler.faults(0, 0, 50).element, two.sampler.faults(0, 0, 50).element)
        assert not np.array_equal(one.sampler.faults(0, 0, 50).key, one.sampler.faults(1, 0, 50).key)


def test_simultaneous_faults_are_distinct(toy_campaign):
    with Session.open(toy_campaign(simultaneous=30)) as session:
        faults = session.sampler.faults(0, 0, 40)
        index = session.space.encode(
            session.sampler.strata[0], faults.region, faults.element, faults.step, faults.variant
        )
        for trial in range(40):
            assert len(set(index[faults.trial == trial].tolist())) == 30


def test_bit_error_rate_is_binomial(toy_campaign):
    with Session.open(toy_campaign(bit_error_rate=0.01)) as session:
        size = session.sampler.strata[0].size
        counts = np.diff(session.sampler.faults(0, 0, 2000).bounds)
        assert counts.mean() == pytest.approx(size * 0.01, rel=0.03)
        assert counts.var() == pytest.approx(size * 0.01 * 0.99, rel=0.1)


def test_inputs_per_fault(toy_campaign):
    with Session.open(toy_campaign(inputs_per_fault=3)) as session:
        faults = session.sampler.faults(0, 0, 400)
        inputs = session.sampler.inputs(faults, 40)
        assert inputs.shape == (400, 3)
        assert (np.diff(inputs, axis=1) > 0).all()
        assert np.bincount(inputs.ravel(), minlength=40).min() > 10
        assert np.array_equal(inputs[5:9], session.sampler.inputs(faults.take(np.arange(5, 9)), 40))


def test_a_list_is_taken_as_it_is(toy_campaign, tmp_path):
    path = tmp_path / "faults.csv"
    table = pa.table({"Injection": [0, 1], "Layer": ["b", "a"], "TensorIndex": ["(4, 3)", "(0, 1)"], "Bit": [30, 0]})
    pyarrow.csv.write_csv(table, path)
    with Session.open(toy_campaign(sampling={"kind": "list", "path": str(path)})) as session:
        faults = session.sampler.faults(0, 0, 2)
        assert faults.region.tolist() == [1, 0]
        assert faults.element.tolist() == [19, 1]
        assert faults.variant.tolist() == [30, 0]
        assert session.sampler.populations == [2]
        before = session.id
    pyarrow.csv.write_csv(table.set_column(3, "Bit", pa.array([29, 0])), path)
    with Session.open(toy_campaign(sampling={"kind": "list", "path": str(path)})) as session:
        assert session.id != before
    missing = toy_campaign(sampling={"kind": "list", "path": str(tmp_path / "no.csv")})
    with Session.open(missing) as session, pytest.raises(FaultError, match="cannot read"):
        session.sampler.faults(0, 0, 1)


def test_more_simultaneous_faults_than_there_are(toy_campaign):
    message = "simultaneous: 10000 faults do not fit stratum 'a', which has 960"
    with Session.open(toy_campaign(simultaneous=10_000)) as session, pytest.raises(FaultError, match=message):
        session.sampler.faults(0, 0, 1)
