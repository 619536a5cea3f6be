from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from saboteur import report
from saboteur.campaign.model import Campaign
from saboteur.campaign.results import Results
from saboteur.campaign.runner import run
from saboteur.errors import SaboteurError
from saboteur.report.wording import given, percent, whole
from tests.report.targets import LAYERS

VOID = {"meta", "br", "img", "input", "link", "hr", "col"}
ACCURACY = {"kind": "accuracy_drop", "tolerance": 0.05}
PLAN = {"kind": "fixed", "n": 200, "stratify": "layer", "confidence": 0.95}


def campaign(**changes: object) -> Campaign:
    fields = {
        "name": "toy",
        "target": "tests.campaign.toy:ToyTarget",
        "faults": [{"model": "bit_flip"}],
        "sampling": PLAN,
        "criteria": ["sdc-1", "sdc-10%", ACCURACY],
    }
    return Campaign.read(fields | changes)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Runs campaigns, each once."""
    done: dict[str, Path] = {}

    def store(**changes: object) -> Path:
        wanted = campaign(**changes)
        key = wanted.model_dump_json()
        if key not in done:
            done[key] = tmp_path_factory.mktemp("store") / "s"
            run(wanted, done[key])
        return done[key]

    return store


@contextmanager
def opened(path: Path) -> Iterator[Results]:
    with Results.open(path) as results:
        yield results


def gathered(path: Path) -> report.ReportData:
    with opened(path) as results:
        return report.data(results)


def html_of(path: Path, out: Path) -> str:
    with opened(path) as results:
        report.write_html(results, out)
    return out.read_text(encoding="utf-8")


class Page(HTMLParser):
    """Checks that tags close in order; collects ids, links, styles and text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[tuple[str, str]] = []
        self.tags: list[str] = []
        self.text: list[str] = []
        self.rows: list[int] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "src", "xlink:href", "srcset", "data", "action"):
                self.links.append((name, value or ""))
        if tag == "tr":
            self.rows.append(0)
        if tag in ("td", "th"):
            self.rows[-1] += int(dict(attrs).get("colspan") or 1)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes <{self.open[-1:]}> at {self.getpos()}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["style"], ["script"]):
            self.text.append(data)


def parsed(text: str) -> Page:
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == []
    return page


def squeezed(text: str) -> str:
    return " ".join(text.replace("\u202f", " ").split())


# -- the file -----------------------------------------------------------------------------------------------


def test_same_store_gives_the_same_bytes_wherever_it_lies(stores, tmp_path):
    first = stores(requirement={"criterion": "sdc-1", "at_most": 0.3})
    shutil.copytree(first, tmp_path / "elsewhere")
    html_of(first, tmp_path / "a.html")
    html_of(tmp_path / "elsewhere", tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    for format, store in (("svg", first), ("pdf", stores(simultaneous=3, sampling=PLAN | {"n": 60}))):
        one = report.write_figures(gathered(store), tmp_path / "one", format)
        two = report.write_figures(gathered(store), tmp_path / "two", format)
        assert [path.name for path in one] == [path.name for path in two]
        assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
    assert one[0].read_bytes().startswith(b"%PDF") and b"CreationDate" not in one[0].read_bytes()


def test_page_is_well_formed_and_needs_no_network(stores, tmp_path):
    text = html_of(stores(requirement={"criterion": "sdc-1", "at_most": 0.3}), tmp_path / "r.html")
    page = parsed(text)
    assert len(page.ids) == len(set(page.ids))
    assert all(value.startswith("#") for _, value in page.links)
    assert {value[1:] for _, value in page.links} <= set(page.ids)
    assert not {"script", "iframe", "object", "embed", "link", "img"} & set(page.tags)
    assert "http://" not in text and "https://" not in text and "@import" not in text
    assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", text)
    assert set(re.findall(r"url\(#([\w-]+)\)", text)) <= set(page.ids)


def test_figures_have_one_file_each_and_no_date(stores, tmp_path):
    data = gathered(stores(requirement={"criterion": "sdc-1", "at_most": 0.3}))
    names = [path.name for path in report.write_figures(data, tmp_path, "svg")]
    assert names == [
        "verdict.svg", "by-layer.svg", "by-bit.svg", "layer-bit.svg", "convergence.svg", "severity.svg",
        "tolerance.svg",
    ]  # fmt: skip
    assert all("<dc:date>" not in path.read_text() for path in tmp_path.glob("*.svg"))
    with pytest.raises(SaboteurError, match="format: 'png' is not svg or pdf"):
        report.write_figures(data, tmp_path, "png")


def test_report_that_cannot_be_written_says_why(stores, tmp_path):
    (tmp_path / "file").write_text("")
    data = gathered(stores())
    with pytest.raises(SaboteurError, match="report: cannot write"):
        report.write_html(data, tmp_path / "file" / "r.html")
    with pytest.raises(SaboteurError, match="figures: cannot write"):
        report.write_figures(data, tmp_path / "file")


def test_hostile_names_stay_text(stores, tmp_path):
    path = stores(name="<script>alert(2)</script>", target="tests.report.targets:HostileTarget")
    text = html_of(path, tmp_path / "r.html")
    page = parsed(text)
    assert "script" not in page.tags and "img" not in page.tags
    assert all(value.startswith("#") for _, value in page.links)
    shown = "".join(page.text)
    for name in LAYERS.values():
        assert shown.count(name) >= 2  # in tables, and its beginning in a figure
    assert "<script>alert(2)</script>" in shown
    assert "</td><script>boom()</script>" in shown


# -- the verdict --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at_most", "status", "mark", "sentence"),
    [
        (0.9, "met", "Requirement met", "The whole interval lies at or below the limit."),
        (0.001, "not met", "Requirement not met", "The whole interval lies above the limit."),
        (0.25, "open", "Open", "decide neither way"),
    ],
)
def test_verdict_in_words(stores, tmp_path, at_most, status, mark, sentence):
    path = stores(requirement={"criterion": "sdc-1", "at_most": at_most})
    with opened(path) as results:
        data = report.data(results)
        found, estimate = results.verdict()
    assert (data.verdict.status, data.verdict.estimate, data.verdict.limit) == (found, estimate, at_most)
    assert found == status
    text = squeezed("".join(parsed(html_of(path, tmp_path / "r.html")).text))
    assert mark in text and sentence in text
    assert f"the requirement allows at most {100 * at_most:g} %." in text
    assert f"k = {estimate.k} of n = {estimate.n} faults; population N = 1 600" in text


def test_verdict_of_a_single_stratum_is_judged_and_drawn_by_the_exact_interval(stores, tmp_path):
    path = stores(requirement={"criterion": "sdc-1", "at_most": 0.3}, sampling=PLAN | {"stratify": "network"})
    with opened(path) as results:
        data = report.data(results)
        assert data.verdict.estimate == results.verdict()[1]
    assert data.verdict.estimate.method == "Clopper–Pearson"
    assert data.outcomes[0].faults["sdc"].method == "Wilson"
    text = squeezed("".join(parsed(html_of(path, tmp_path / "r.html")).text))
    assert "interval: Clopper–Pearson, 95 % confidence" in text
    assert "Low and high: interval at 95 % confidence (Wilson; fixed n)." in text


def test_open_verdict_says_how_many_faults_would_decide():
    from saboteur.report.data import _what_would_decide
    from saboteur.statistics import proportion

    estimate = proportion(10, 1000, 10**9, 0.95)  # 1 % [0.54 %, 1.83 %]
    words = _what_would_decide(estimate, 0.014).replace("\u202f", "")
    expected = 1000 * ((estimate.high - 0.01) / 0.004) ** 2
    assert int(re.search(r"about (\d+) faults", words)[1]) == pytest.approx(expected, rel=0.05)
    assert "only an exhaustive campaign" in _what_would_decide(proportion(10, 1000, 2000, 0.95), 0.011)
    assert "equals the limit" in _what_would_decide(estimate, estimate.best)


def test_verdict_on_accuracy_asks_whether_the_tolerated_accuracy_is_acceptable(stores):
    name = "accuracy_drop(tolerance=0.05)"
    with opened(stores(requirement={"criterion": name, "at_most": 0.3})) as results:
        golden = results.session.golden.accuracy
        sentences = squeezed(" ".join(report.data(results).verdict.sentences))
    assert f"Without faults, {percent(golden)}".replace("\u202f", " ") in sentences
    assert f"is {100 * golden - 5:.2f} % instead of {100 * golden:.2f} % acceptable?" in sentences
    assert "falls by more than 5 points" in sentences and "for all but 30 % of the faults" in sentences


def test_without_requirement_the_headline_is_the_estimate(stores, tmp_path):
    path = stores()
    data = gathered(path)
    assert data.verdict.status == "no requirement" and data.verdict.limit is None
    estimate = data.verdict.estimate
    assert data.verdict.headline.startswith(f"{percent(estimate.best)} of faults end in silent data corruption")
    assert data.progress.complete
    text = "".join(parsed(html_of(path, tmp_path / "r.html")).text)
    assert "No requirement stated" in text and "Preliminary." not in text


def test_partial_campaign_is_marked_at_the_top(stores, tmp_path):
    shutil.copytree(stores(requirement={"criterion": "sdc-1", "at_most": 0.9}), tmp_path / "s")
    units = sorted((tmp_path / "s" / "units").glob("*.parquet"))
    units[-1].unlink()
    text = squeezed("".join(parsed(html_of(tmp_path / "s", tmp_path / "r.html")).text))
    assert "Requirement met so far" in text
    assert "Preliminary. The campaign is not finished: 192 of the 200 trials" in text
    assert text.index("Preliminary.") < text.index("Requirement met so far")
    data = gathered(tmp_path / "s")
    assert (data.progress.complete, data.progress.valid, data.progress.decided) == (False, 192, 200)
    assert sum(row.valid for row in data.sampling_plan) == 192


def test_store_without_a_finished_unit_gives_a_report_that_says_so(stores, tmp_path):
    shutil.copytree(stores(requirement={"criterion": "sdc-1", "at_most": 0.3}), tmp_path / "s")
    for unit in (tmp_path / "s" / "units").glob("*.parquet"):
        unit.unlink()
    data = gathered(tmp_path / "s")
    assert data.verdict.status == "no data" and data.verdict.estimate is None
    assert all(group.sdc is None for group in data.by_bit.groups) and len(data.by_bit.groups) == 32
    text = squeezed("".join(parsed(html_of(tmp_path / "s", tmp_path / "r.html")).text))
    assert "No data yet" in text and "Preliminary." in text and "No valid trial yet" in text
    assert report.to_json(data)["convergence"] == []
    assert report.write_figures(data, tmp_path / "figures") == []


# -- the numbers --------------------------------------------------------------------------------------------


def test_json_holds_the_estimates_of_results(stores):
    with opened(stores()) as results:
        found = report.to_json(results)
        for criterion, row in zip(results.campaign.criteria, found["outcomes"], strict=True):
            assert row["criterion"] == criterion.name
            for what in ("masked", "sdc", "due"):
                assert row["faults"][what] == asdict(results.estimate(criterion, what))
                if criterion.kind != "accuracy_drop":
                    assert row["inferences"][what] == asdict(results.estimate(criterion, what, "inferences"))
        question = results.campaign.question
        for by in ("layer", "bit", "layer_bit"):
            groups = found[f"by_{by}"]["groups"]
            expected = {(n, b): asdict(e) for n, b, e in results.estimates(question, by)}
            assert {(g["name"], -1 if g["bit"] is None else g["bit"]): g["sdc"] for g in groups if g["sdc"]} == expected
        curve = results.convergence(question)
        assert [(p["trials"], p["estimate"]) for p in found["convergence"]] == [(n, asdict(e)) for n, e in curve]
        assert found["convergence"][-1]["estimate"] == found["verdict"]["estimate"]
    assert found["outcomes"][2]["inferences"] == {}


def test_json_keys_are_those_of_the_schema(stores):
    found, schema = report.to_json(gathered(stores())), report.json_schema()
    assert set(found) == set(schema["properties"])
    assert found["schema"] == 1
    assert set(found["verdict"]["estimate"]) == {
        "low", "best", "high", "k", "n", "population", "method", "confidence", "unit", "stopping_rule", "clusters",
        "effective_n",
    }  # fmt: skip


def test_groups_share_out_all_trials_and_the_whole_population(stores):
    data = gathered(stores())
    total = data.outcomes[0].faults["sdc"]
    for groups in (data.by_layer, data.by_bit, data.by_layer_bit, data.by_component):
        assert sum(group.population for group in groups.groups) == 1600
        assert sum(group.sdc.n for group in groups.groups if group.sdc) == total.n == 200
        assert sum(group.sdc.k for group in groups.groups if group.sdc) == total.k
    assert [(group.name, group.population) for group in data.by_layer.groups] == [("a", 960), ("b", 640)]
    assert sum(kind.share.k for kind in data.severity) == 200
    assert sum(kind.share.best for kind in data.severity) == pytest.approx(1)


def test_severity_and_accuracy_equal_a_plain_count(stores):
    with opened(stores()) as results:
        data = report.data(results)
        tables = list(results.tables())
        hit = np.concatenate([t["sdc:sdc-1"].to_numpy() / 40 for t in tables])
        correct = np.concatenate([t["correct"].to_numpy() for t in tables])
        tolerance_5 = results.estimate(results.campaign.criterion("accuracy_drop(tolerance=0.05)"))
    by_label = {kind.label.replace("\u202f", " "): kind.share.k for kind in data.severity}
    assert by_label["none"] == (hit == 0).sum()
    assert by_label["1–5 %"] == ((hit > 0.01) & (hit <= 0.05)).sum()
    assert by_label["over 75 %, not all"] == ((hit > 0.75) & (hit < 1)).sum()
    assert by_label["all"] == (hit == 1).sum()
    assert data.accuracy.worst == correct.min() / 40
    assert (data.accuracy.faulty.k, data.accuracy.faulty.n) == (correct.sum(), 200 * 40)
    assert {step.tolerance: step.share for step in data.accuracy.tolerances}[0.05] == tolerance_5


def test_every_inference_is_accounted_for_by_how_it_was_obtained(stores, tmp_path):
    path = stores()
    with opened(path) as results:
        data = report.data(results)
        identical = sum(int(table["identical"].to_numpy().sum()) for table in results.tables())
    got = data.obtained
    assert (got.inferences, got.identical, got.bounded, got.screened) == (200 * 40, identical, 0, 0)
    assert got.audited == 0 and got.wrong is None
    text = squeezed("".join(parsed(html_of(path, tmp_path / "r.html")).text))
    assert f"Of 8 000 inferences with a fault, {whole(identical)} gave".replace("\u202f", " ") in text


def test_predictions_are_stated_with_the_bound_of_their_audit(stores, tmp_path):
    path = stores(target="tests.report.targets:ScreenedTarget", requirement={"criterion": "sdc-1", "at_most": 0.9})
    data = gathered(path)
    got = data.obtained
    assert got.screened > 0 and got.audited == got.wrong.n > 0
    assert got.wrong.population == got.screened + got.audited
    assert got.wrong.low == 0 < got.wrong.high < 0.05 and got.wrong.k == 0
    text = squeezed(" ".join(data.verdict.sentences))
    assert f"{whole(got.screened)} of 8 000 inferences were not run".replace("\u202f", " ") in text
    assert f"{whole(got.audited)} such predictions".replace("\u202f", " ") in text
    assert "Audit of the predictions: 0 of" in squeezed("".join(parsed(html_of(path, tmp_path / "r.html")).text))


def test_most_critical_sites_come_worst_first_with_their_replay_line(stores, tmp_path):
    path = stores()
    data = gathered(path)
    severities = [trial.severity for trial in data.critical]
    assert len(severities) == 20 and severities == sorted(severities, reverse=True) and severities[-1] > 0
    first = data.critical[0]
    assert first.replay == f"saboteur replay STORE {first.stratum}:{first.trial}"
    assert re.fullmatch(r"bit_flip in [ab]\.weight\(\d, \d\), bit \d+", first.fault)
    assert first.replay in html_of(path, tmp_path / "r.html")


def test_heat_map_marks_cells_that_no_fault_met(stores, tmp_path):
    path = stores(sampling=PLAN | {"n": 40})
    groups = gathered(path).by_layer_bit.groups
    unmet = [group for group in groups if group.sdc is None]
    assert len(groups) == 64 and 0 < len(unmet) < 64
    text = html_of(path, tmp_path / "r.html")
    assert len(re.findall(r'id="layer-bit-unmet-\d+-\d+"', text)) == len(unmet)
    hatched = re.search(r'id="layer-bit-unmet-[^>]*>\s*<path[^>]*style="fill: url\(#layer-bit-h', text)
    assert hatched, "an unmet cell is hatched"
    assert f"{64 - len(unmet)} of 64 cells hold at least one fault" in squeezed("".join(parsed(text).text))


def test_a_single_trial_is_enough_for_a_report(stores, tmp_path):
    path = stores(sampling=PLAN | {"n": 1, "stratify": "network"})
    data = gathered(path)
    assert data.progress.valid == 1 and data.by_layer_bit.met == 1
    assert "Too few trials to show a course" in "".join(parsed(html_of(path, tmp_path / "r.html")).text)


def test_zero_sdc_is_an_upper_bound_not_a_zero(stores, tmp_path):
    path = stores(
        criteria=[{"kind": "numeric_error", "tolerance": 1e300}],
        requirement={"criterion": "numeric_error(tolerance=1e+300)", "at_most": 0.2},
    )
    data = gathered(path)
    assert data.verdict.status == "met"
    assert data.verdict.estimate.k == 0 and 0 < data.verdict.estimate.high < 0.2
    text = squeezed("".join(parsed(html_of(path, tmp_path / "r.html")).text))
    assert "None of the faults injected is SDC" in text and data.critical == ()


# -- other kinds of campaign --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"simultaneous": 3}, "3 faults act together"), ({"bit_error_rate": 0.001}, "present with probability 0.001")],
)
def test_trials_of_many_faults_have_no_places_and_the_sections_say_so(stores, tmp_path, changes, words):
    path = stores(**changes, sampling=PLAN | {"n": 60})
    data = gathered(path)
    for groups in (data.by_layer, data.by_bit, data.by_layer_bit, data.by_component):
        assert groups.groups == () and words in groups.absent
    assert data.progress.population is None and data.verdict.estimate.population is None
    assert data.progress.valid == 60 and data.critical
    assert dict(data.what_was_done)["Counted as one fault"].startswith("a trial")
    text = "".join(parsed(html_of(path, tmp_path / "r.html")).text)
    assert text.count("cannot be put down to one place") == 4


def test_invalid_trials_are_counted_with_their_reasons_and_in_no_denominator(stores, tmp_path):
    path = stores(target={"kind": "tests.campaign.toy:ToyTarget", "misbehave": "invalid"})
    with opened(path) as results:
        data = report.data(results)
        addresses = results.invalid()
    assert data.progress.invalid == len(addresses) > 0
    assert data.progress.valid == 200 - len(addresses) == data.outcomes[0].faults["sdc"].n
    assert data.progress.complete
    (reason,) = data.invalid
    assert (reason.reason, reason.trials) == ("the harness lost its way", len(addresses))
    assert reason.example == f"{addresses['stratum'][0]}:{addresses['trial'][0]}"
    text = squeezed("".join(parsed(html_of(path, tmp_path / "r.html")).text))
    assert text.index(f"{len(addresses)} invalid trials could not be run") < text.index("What was done")


def test_faults_of_whole_values_have_no_bits(stores, tmp_path):
    path = stores(faults=[{"model": "dead"}], sampling={"kind": "exhaustive"})
    data = gathered(path)
    assert data.by_bit.absent == data.by_layer_bit.absent == "The faults act on whole values, not on single bits."
    assert data.by_layer.met == 2
    parsed(html_of(path, tmp_path / "r.html"))


def test_a_fault_list_is_its_own_population(stores, tmp_path):
    (tmp_path / "faults.csv").write_text(
        "trial,site,index,bit\n" + "\n".join(f'{i},a.weight,"({i % 6}, {i % 5})",{i}' for i in range(25))
    )
    path = stores(sampling={"kind": "list", "path": str(tmp_path / "faults.csv")}, faults=[{"model": "bit_flip"}])
    data = gathered(path)
    estimate = data.verdict.estimate
    assert (estimate.n, estimate.population) == (25, 25) and estimate.low == estimate.best == estimate.high
    assert [group.sdc.population for group in data.by_bit.groups if group.sdc] == [1] * 25
    assert data.by_bit.groups[31].sdc is None
    assert data.convergence[0].estimate.low < data.convergence[0].estimate.high
    assert dict(data.hashes)["fault list"]


def test_plan_of_many_strata_is_folded(stores, tmp_path):
    path = stores(
        sampling={"kind": "statistical", "stratify": "layer_bit", "margin": 0.3, "margin_for": "stratum",
                  "confidence": 0.95, "prior": "data_aware"},
    )  # fmt: skip
    data = gathered(path)
    assert len(data.sampling_plan) == 64
    assert {row.prior for row in data.sampling_plan if row.name.endswith("bit 30")} == {0.5}
    assert sum(row.population for row in data.sampling_plan) == 1600
    text = html_of(path, tmp_path / "r.html")
    assert "<summary>All strata (64 rows)</summary>" in text
    assert "Assumed rate p of a bit" in text


def test_early_stop_is_complete_and_says_how_much_was_planned(stores):
    data = gathered(
        stores(
            sampling={"kind": "fixed", "n": 1000, "confidence": 0.9},
            stopping={"criterion": "sdc-1", "half_width": 0.15},
        )
    )
    (row,) = data.sampling_plan
    assert data.progress.complete and row.decided == data.progress.valid < row.planned == 1000
    done = squeezed(dict(data.what_was_done)["Injected"])
    assert done.startswith(f"{row.decided} trials, stopped early by the rule with 1 000 planned")
    assert "stopping" in data.methods


def test_refined_plan_is_complete_only_when_its_rounds_are(stores):
    data = gathered(
        stores(
            sampling={"kind": "statistical", "margin": 0.1, "confidence": 0.9, "refine": True, "pilot": 20},
        )
    )
    (row,) = data.sampling_plan
    assert row.planned == 20 and row.decided == row.valid > 20 and data.progress.complete
    assert "Further rounds" in {formula.quantity for formula in report.FORMULAS if formula.key in data.methods}


def test_workload_without_labels_says_so(stores, tmp_path):
    path = stores(
        target="tests.report.targets:UnlabelledTarget",
        criteria=[{"kind": "numeric_error", "tolerance": 0.1}],
    )
    data = gathered(path)
    assert data.accuracy is None and data.critical[0].correct is None
    assert "has no labels" in "".join(parsed(html_of(path, tmp_path / "r.html")).text)


# -- wording ------------------------------------------------------------------------------------------------


def test_numbers_as_printed():
    shown = [percent(x).replace("\u202f", " ") for x in (0, 1, 0.2724, 0.00714, 0.0001234, 0.999, float("nan"))]
    assert shown == ["0 %", "100 %", "27.24 %", "0.714 %", "0.0123 %", "99.90 %", "unknown"]
    assert given(0.3).replace("\u202f", " ") == "30 %" and given(0.005).replace("\u202f", " ") == "0.5 %"
    assert whole(2**60 + 1).replace("\u202f", "") == str(2**60 + 1) and whole(1234.6).replace("\u202f", " ") == "1 235"


def test_glossary_has_a_source_for_every_entry_and_every_method_is_explained(stores):
    assert all(term.meaning and term.source for term in report.TERMS)
    assert [term.term.lower() for term in report.TERMS] == sorted(term.term.lower() for term in report.TERMS)
    keys = {formula.key for formula in report.FORMULAS}
    assert len(keys) == len(report.FORMULAS)
    assert set(gathered(stores()).methods) <= keys
