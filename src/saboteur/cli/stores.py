"""Commands that take a store: status, report, replay, compare, rescore, export, faults."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from saboteur.cli.source import Json, StoreArgument, read_campaign
from saboteur.cli.terminal import (
    arrow_table,
    facts,
    interval,
    number,
    percent,
    say,
    show,
    show_json,
    signed_interval,
    signed_percent,
    table,
)
from saboteur.errors import CampaignError, StoreError

if TYPE_CHECKING:
    import pyarrow as pa

    from saboteur.outcomes import Criterion

_CHUNK = 65536
_DESCRIBED = re.compile(r"^(?P<kind>[^(]+?)\s*(?:\((?P<settings>.*)\))?$")


def status(store: StoreArgument, json: Json = False) -> None:
    """Show how far a campaign has come, and its raw counts; its target is not opened."""
    import numpy as np

    from saboteur.campaign import Store
    from saboteur.outcomes import outcome

    opened = Store.open(store)
    campaign, golden = opened.campaign, opened.golden()
    rounds = []
    for step in opened.rounds():
        finished = opened.done(step)
        done = sum(stop - start for unit in finished for _, start, stop in step.slices(unit))
        rounds.append(
            {
                "round": step.number + 1,
                "faults": step.trials,
                "done": done,
                "units": step.units,
                "finished": len(finished),
            }
        )
    counts = dict.fromkeys(("masked", "sdc", "due", "invalid"), 0)
    for observed in opened.tables():
        kinds, how_many = np.unique(outcome(observed, campaign.question, golden), return_counts=True)
        for kind, count in zip(kinds.tolist(), how_many.tolist(), strict=True):
            counts[kind] += count
    claims = opened.path / "claims"
    aside = opened.path / "quarantine"
    found: dict[str, Any] = {
        "campaign": campaign.name,
        "id": opened.id,
        "store": str(store),
        "rounds": rounds,
        "criterion": campaign.question.name,
        "counts": counts,
        "claimed": sorted(path.name for path in claims.glob("[!.]*")) if claims.exists() else [],
        "damaged": sorted(path.name for path in aside.iterdir()) if aside.exists() else [],
    }
    if json:
        return show_json(found)
    show(facts([("campaign", Text.assemble(campaign.name, (f"  {opened.id}", "dim"))), ("store", str(store))]))
    show(
        table(
            "Rounds",
            ["round>", "faults>", "done>", "share>", "units>", "finished>"],
            (
                [r["round"], r["faults"], r["done"], percent(r["done"] / r["faults"]), r["units"], r["finished"]]
                for r in rounds
            ),
        )
    )
    lines = [
        (
            f"so far, by {campaign.question.name}",
            ", ".join(f"{number(count)} {kind}" for kind, count in counts.items()) + " faults (counts, not rates)",
        )
    ]
    if found["claimed"]:
        lines.append(("claimed by workers", f"{len(found['claimed'])} units"))
    if found["damaged"]:
        lines.append(("put aside, damaged", ", ".join(found["damaged"]) + "; the next run restores them"))
    if any(r["done"] < r["faults"] for r in rounds) or not rounds:
        lines.append(("next", "`saboteur run` with the same campaign and store goes on"))
    show(facts(lines))


def report(
    store: StoreArgument,
    figures: Annotated[
        Path | None,
        typer.Option(help="Also write every figure as SVG and PDF into this folder.", envvar="SABOTEUR_FIGURES"),
    ] = None,
    json: Json = False,
) -> None:
    """Write report.html into a store, and print the headline; with --json, everything that the report shows."""
    from saboteur import report as reports
    from saboteur.campaign import Results
    from saboteur.cli.summary import finish, headline

    with Results.open(store) as results:
        gathered = reports.data(results)
        path = store / "report.html"
        reports.write_html(gathered, path)
        say(f"[dim]{path}[/]")
        if figures is not None:
            for written in (
                *reports.write_figures(gathered, figures, "svg"),
                *reports.write_figures(gathered, figures, "pdf"),
            ):
                say(f"[dim]{written}[/]")
        if json:
            return show_json(reports.to_json(gathered))
        summary = headline(results, path)
    finish(summary, json, strict=False)


def replay(
    store: StoreArgument,
    trial: Annotated[str, typer.Argument(metavar="STRATUM:TRIAL", help="Which trial, as reports and exports name it.")],
    input: Annotated[
        int | None, typer.Option(min=0, help="The input to follow; the one whose output moves most if absent.")
    ] = None,
    json: Json = False,
) -> None:
    """Run a single trial again and follow its error through the network, place by place."""
    from saboteur.campaign import Results
    from saboteur.campaign import replay as replay_trial

    match = re.fullmatch(r"(\d+):(\d+)", trial)
    if match is None:
        raise typer.BadParameter(f"{trial!r} is not STRATUM:TRIAL, such as 3:17", param_hint="STRATUM:TRIAL")
    stratum, number_in_it = int(match[1]), int(match[2])
    with Results.open(store) as results:
        again = replay_trial(results.session, stratum, number_in_it, input)
        name = results.session.sampler.strata[stratum].name
        formats = {region.site: region.format.name for region in results.space.regions}
    observed = again.observations.to_pylist()[0]
    if json:
        return show_json(
            {
                "stratum": stratum,
                "name": name,
                "trial": number_in_it,
                "faults": again.faults.to_pylist(),
                "observations": observed,
                "outcomes": again.outcomes,
                "input": again.input,
                "golden": again.golden,
                "faulty": again.faulty,
                "trace": again.trace.to_pylist(),
            }
        )
    faults = again.faults.to_pylist()
    words = [_in_words(fault, formats[fault["site"]]) for fault in faults[:20]]
    if len(faults) > len(words):
        words.append(f"… and {number(len(faults) - len(words))} more")
    show(
        facts(
            [
                ("trial", Text.assemble(f"{stratum}:{number_in_it}  ", (name, "dim"))),
                ("fault" if len(faults) == 1 else f"{number(len(faults))} faults", "\n".join(words) or "none"),
                ("inferences", _inferences(observed)),
            ]
        ),
        table("Outcome", ["criterion", "fault is", "SDC inferences>"], _outcomes(again.outcomes, observed)),
        facts([("input followed", f"{again.input}: {_answers(again.golden, again.faulty)}")]),
        arrow_table("Spread of the error", again.trace, again.trace.column_names),
    )


def _in_words(fault: dict[str, Any], number_format: str) -> str:
    where = f"{fault['site']}{fault['index']}"
    bit = f", bit {fault['bit']} of {number_format}" if fault["bit"] >= 0 else f", a {number_format} value"
    when = f", step {fault['step']}" if fault["step"] else ""
    return f"{fault['duration']} {fault['model']} in {where}{bit}{when}"


def _inferences(observed: dict[str, Any]) -> str:
    if observed.get("invalid"):
        return f"invalid: {observed['invalid']}"
    kinds = ("identical", "bounded", "screened", "nonfinite", "crash", "hang", "detected")
    met = {name: observed[name] for name in kinds if observed.get(name)}
    met["moved"] = observed["inferences"] - sum(met.values())
    words = f"{number(observed['inferences'])}: " + ", ".join(f"{number(n)} {name}" for name, n in met.items() if n)
    if observed.get("correct") is not None:
        words += f"; right answers {number(observed['correct'])}, golden {number(observed['golden_correct'])}"
    return words


def _outcomes(outcomes: dict[str, str], observed: dict[str, Any]) -> Iterator[list[object]]:
    colours = {"sdc": "yellow", "due": "red", "masked": "green", "invalid": "red"}
    for name, kind in outcomes.items():
        shown = kind if kind in ("masked", "invalid") else kind.upper()
        yield [name, Text(shown, colours[kind]), observed.get(f"sdc:{name}")]


def _answers(golden: Any, faulty: Any) -> str:
    if faulty is None:
        return "no output"
    if golden.ndim != 1 or len(golden) < 2:
        return "–"
    before, after = int(golden.argmax()), int(faulty.argmax())
    return f"answer {before}" + (" → " + str(after) if after != before else ", as in the golden run")


def compare(
    store_a: Annotated[Path, typer.Argument(metavar="STORE_A", help="One campaign's results.")],
    store_b: Annotated[Path, typer.Argument(metavar="STORE_B", help="The other's.")],
    criterion: Annotated[
        str | None, typer.Option(help="A criterion of both; the question of A if absent.", envvar="SABOTEUR_CRITERION")
    ] = None,
    json: Json = False,
) -> None:
    """Compare two campaigns: fault by fault where they injected the same ones, else as independent samples."""
    from saboteur.campaign import Results
    from saboteur.campaign import compare as compare_results

    with Results.open(store_a) as a, Results.open(store_b) as b:
        found = compare_results(a, b, criterion)
        names = a.campaign.name, b.campaign.name
    if json:
        return show_json({"campaigns": names, **vars(found)})
    rows: list[list[object]] = [
        [f"{side} {name}", "faults", percent(e.best), interval(e), e.k, e.n]
        for side, name, e in zip("ab", names, (found.a, found.b), strict=True)
    ]
    rows.append(["a − b", "faults", signed_percent(found.faults.best), signed_interval(found.faults), None, None])
    if found.inferences is not None:
        rows.append(
            [
                "a − b",
                "inferences",
                signed_percent(found.inferences.best),
                signed_interval(found.inferences),
                None,
                None,
            ]
        )
    show(table(f"SDC by {found.criterion}", ["", "of", "rate>", "interval>", "k>", "n>"], rows))
    lines = [("method", found.method), ("confidence", percent(found.confidence))]
    if found.p_value is not None:
        lines += [
            ("SDC in one alone", f"a {number(found.only_a)}, b {number(found.only_b)}"),
            ("exact McNemar test", f"p = {found.p_value:.3g}"),
        ]
    show(facts(lines))


def rescore(
    store: StoreArgument,
    criteria: Annotated[
        list[str],
        typer.Option(
            "--criteria",
            "-c",
            help="A criterion as tables call it: sdc-1, 'accuracy_drop(tolerance=0.05)'; repeat for several.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the re-scored results.", envvar="SABOTEUR_OUT")],
    json: Json = False,
) -> None:
    """Score a finished campaign anew under other criteria, from the raw outputs it kept; nothing is injected."""
    from saboteur.campaign import Results
    from saboteur.campaign import rescore as rescore_results
    from saboteur.cli.summary import finish, headline

    judges = [_criterion(text) for text in criteria]
    with Results.open(store) as results:
        rescore_results(results, judges, out)
    with Results.open(out) as results:
        summary = headline(results)
    finish(summary, json, strict=False)


def _criterion(text: str) -> Criterion:
    from pydantic import TypeAdapter, ValidationError
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    from saboteur.outcomes.criteria import AnyCriterion

    match = _DESCRIBED.match(text.strip())
    try:
        if match is None:
            raise ValueError("not a criterion")
        pairs = [pair.partition("=") for pair in (match["settings"] or "").split(",") if pair.strip()]
        settings = {key.strip(): YAML(typ="safe", pure=True).load(value) for key, _, value in pairs}
        return TypeAdapter(AnyCriterion).validate_python({"kind": match["kind"], **settings})
    except ValidationError as error:
        problems = "; ".join(".".join(map(str, (*p["loc"], ""))) + " " + p["msg"] for p in error.errors())
        raise CampaignError(f"criteria: {text}: {problems.replace('. ', ': ').lstrip(': ')}") from error
    except (ValueError, YAMLError) as error:
        raise CampaignError(f"criteria: {text!r} must read like sdc-1 or accuracy_drop(tolerance=0.05)") from error


def export(
    store: StoreArgument,
    file: Annotated[Path, typer.Argument(help="Where to: FILE.csv or FILE.parquet.")],
) -> None:
    """Write every trial as a table: site, outcome under each criterion, raw counts."""
    from saboteur.campaign import Results

    with Results.open(store) as results:
        rows = _write(results.export(), file)
    show(f"{file}: {rows} trials")


def faults(
    source: Annotated[
        str, typer.Argument(metavar="STORE|CAMPAIGN", help="A result folder, a campaign file or an embedded example.")
    ],
    file: Annotated[Path, typer.Argument(help="Where to: FILE.csv or FILE.parquet.")],
) -> None:
    """Write the faults of a plan as a fault list, which `sampling: {kind: list}` and other tools can read."""
    from saboteur.campaign import Results, Session, Store

    if (Path(source) / "manifest.json").exists():
        rounds = Store.open(Path(source)).rounds()
        with Results.open(Path(source)) as results:
            n = rounds[-1].after if rounds else results.plan.n
            rows = _write(_fault_tables(results.session, n.tolist()), file)
    else:
        with Session.open(read_campaign(source)) as session:
            rows = _write(_fault_tables(session, session.plan.n.tolist()), file)
    show(f"{file}: {rows} faults")


def _fault_tables(session: Any, n: list[int]) -> Iterator[pa.Table]:
    import pyarrow as pa
    import pyarrow.compute as pc

    from saboteur.faults import lists

    begun = 0
    for stratum, trials in enumerate(n):
        for start in range(0, trials, _CHUNK):
            stop = min(start + _CHUNK, trials)
            rows = lists.to_table(session.space, session.sampler.faults(stratum, start, stop))
            numbered = pc.call_function("add", [rows["trial"], pa.scalar(begun)])
            begun += stop - start
            yield rows.set_column(0, "trial", numbered)


def _write(tables: Iterator[pa.Table], file: Path) -> int:
    """Write tables of one kind to a file, one after the other; the file is whole or not there."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    if file.suffix not in (".csv", ".parquet"):
        raise CampaignError(f"file: {file} is neither .csv nor .parquet")
    first = next(tables, None)
    if first is None:
        raise StoreError("store: there is no finished work unit yet; nothing to write")
    temporary = file.with_name(f".{file.name}.part")
    schema = first.schema
    open_writer = pa.csv.CSVWriter if file.suffix == ".csv" else pq.ParquetWriter
    try:
        with open_writer(temporary, schema) as writer:
            rows = 0
            while first is not None:
                writer.write_table(first.cast(schema))
                rows, first = rows + len(first), next(tables, None)
        temporary.replace(file)
    except OSError as error:
        raise StoreError(f"file: cannot write {file}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return rows
