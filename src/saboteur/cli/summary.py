"""The headline of a store: what was found under every criterion, and the verdict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.text import Text

from saboteur.cli.terminal import facts, interval, number, percent, show, show_json, table

if TYPE_CHECKING:
    from saboteur.campaign import Results

_COLOURS = {"met": "bold green", "not met": "bold red", "open": "bold yellow"}


def headline(results: Results, report: Path | None = None) -> dict[str, Any]:
    """Estimates of SDC and DUE in both denominators, and the verdict.

    Raises:
        StoreError: when nothing valid has been observed yet.
    """
    from saboteur.outcomes.criteria import FaultCriterion

    campaign = results.campaign
    rates = []
    for criterion in campaign.criteria:
        units = ("faults",) if isinstance(criterion, FaultCriterion) else ("faults", "inferences")
        rates += [
            {
                "criterion": criterion.name,
                "outcome": "sdc",
                "unit": unit,
                "estimate": results.estimate(criterion, "sdc", unit),
            }
            for unit in units
        ]
    # Whether a fault is DUE depends on the criterion (SDC in another inference outweighs it), an inference's not.
    question = campaign.question
    judges = [
        ("faults", question),
        *(("inferences", c) for c in campaign.criteria if not isinstance(c, FaultCriterion)),
    ]
    rates += [
        {"criterion": judge.name, "outcome": "due", "unit": unit, "estimate": results.estimate(judge, "due", unit)}
        for unit, judge in judges[:2]
    ]
    verdict = results.verdict()
    populations = results.session.sampler.populations
    return {
        "campaign": campaign.name,
        "id": results.store.id,
        "store": str(results.store.path),
        "plan": results.plan.in_words(),
        "population": None if None in populations else sum(populations),
        "invalid": len(results.invalid()),
        "rates": rates,
        "requirement": campaign.requirement and campaign.requirement.model_dump(mode="json"),
        "verdict": verdict and verdict[0],
        "verdict_estimate": verdict and verdict[1],
        "report": report and str(report),
    }


def finish(summary: dict[str, Any], json: bool, strict: bool) -> None:
    """Print the headline; with ``strict``, exit 1 where the requirement is not met or still open.

    Raises:
        typer.Exit: as said.
    """
    if json:
        show_json(summary)
    else:
        show(table("Estimates", ["criterion", "outcome", "of", "rate>", "interval>", "k>", "n>"], _rows(summary)))
        lines: list[tuple[str, object]] = [
            ("plan", summary["plan"]),
            ("population", _population(summary["population"])),
            ("intervals", _confidence(summary)),
        ]
        if summary["invalid"]:
            lines.append(
                ("invalid", Text(f"{number(summary['invalid'])} trials could not be run; not in any rate", "red"))
            )
        if (asked := summary["requirement"]) is not None:
            colour = _COLOURS[summary["verdict"]]
            lines.append(
                (
                    "requirement",
                    Text.assemble(
                        f"{asked['criterion']} in at most {percent(asked['at_most'])} of {asked['unit']}: ",
                        (summary["verdict"], colour),
                        f" ({interval(summary['verdict_estimate'])}, {summary['verdict_estimate'].method})",
                    ),
                )
            )
        if summary["report"]:
            lines.append(("report", summary["report"]))
        show(facts(lines))
    if strict and summary["requirement"] is not None and summary["verdict"] != "met":
        raise typer.Exit(1)


def _population(size: int | None) -> str:
    return "combinations of faults, without number" if size is None else f"{number(size)} single faults"


def _rows(summary: dict[str, Any]) -> list[list[object]]:
    return [
        [
            "any" if (rate["outcome"], rate["unit"]) == ("due", "inferences") else rate["criterion"],
            rate["outcome"].upper(),
            rate["unit"],
            percent(rate["estimate"].best),
            interval(rate["estimate"]),
            rate["estimate"].k,
            rate["estimate"].n,
        ]
        for rate in summary["rates"]
    ]


def _confidence(summary: dict[str, Any]) -> str:
    first = summary["rates"][0]["estimate"]
    methods = ", ".join(dict.fromkeys(rate["estimate"].method for rate in summary["rates"]))
    return f"{percent(first.confidence)} confidence, {methods}; {first.stopping_rule}"
