"""Commands that take campaigns at several levels: levels, hybrid, learn."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saboteur.cli.source import Json, StoreArgument
from saboteur.cli.terminal import (
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
from saboteur.errors import CampaignError

if TYPE_CHECKING:
    from saboteur.faults.error_permanent import PermanentProfile

Criterion = Annotated[
    str | None,
    typer.Option(help="A criterion of all campaigns; the first one's question if absent.", envvar="SABOTEUR_CRITERION"),
]


def levels(
    stores: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]STORE...",
            help="Two campaigns or more of one network; the first, the most exact one, is what the others are held to.",
        ),
    ],
    criterion: Criterion = None,
    unit: Annotated[
        str, typer.Option(help="What rates are of: faults or inferences.", envvar="SABOTEUR_UNIT")
    ] = "faults",
    figure: Annotated[
        Path | None, typer.Option(help="Also draw it: FILE.svg or FILE.png.", envvar="SABOTEUR_FIGURE")
    ] = None,
    json: Json = False,
) -> None:
    """Compare one network at several levels, layer by layer: how faithful a cheaper level or an error model is."""
    from saboteur.campaign import Results
    from saboteur.reliability.levels import compare_levels
    from saboteur.report import levels as drawing

    opened: dict[str, Any] = {}
    with ExitStack() as stack:
        for text in stores:
            name, _, path = text.rpartition("=")
            results = stack.enter_context(Results.open(Path(path)))
            name = name or results.campaign.name
            if name in opened:
                raise CampaignError(f"stores: two are called {name!r}; name them, as in rtl={path}")
            opened[name] = results
        if unit not in ("faults", "inferences"):
            raise CampaignError(f"unit: {unit!r} is neither faults nor inferences")
        found = compare_levels(opened, criterion, unit)
    if figure is not None:
        drawing.write(found, figure)
        say(f"[dim]{figure}[/]")
    if json:
        return show_json(found)
    rows: list[list[object]] = []
    for layer in found.layers:
        for level in found.levels:
            row = found.row(layer, level)
            if row is None:
                continue
            difference = (
                ""
                if row.difference is None
                else f"{signed_percent(row.difference.best)}  {signed_interval(row.difference)}"
            )
            p_value = None if row.p_value is None else f"{row.p_value:.3g}"
            e = row.estimate
            rows.append([layer, level, percent(e.best), interval(e), e.k, e.n, difference, p_value])
    show(
        table(
            f"SDC of {found.unit} by {found.criterion}, by layer and level",
            ["layer", "level", "rate>", "interval>", "k>", "n>", f"level − {found.reference}>", "p>"],
            rows,
        )
    )
    lines: list[tuple[str, object]] = [
        ("confidence", percent(found.confidence)),
        ("p", "of outcomes being distributed as at the reference level"),
    ]
    for row in found.rows:
        if row.agreement is not None:
            both = row.agreement
            lines.append(
                (
                    f"{row.level}, same faults",
                    f"{percent(both.share)} of {number(both.faults)} verdicts as at {found.reference}; SDC at "
                    f"{row.level} alone {number(both.level_alone)}, at {found.reference} alone "
                    f"{number(both.reference_alone)}",
                )
            )
    show(facts(lines))


def hybrid(
    cheap: Annotated[Path, typer.Argument(metavar="CHEAP", help="The campaign at the cheap level: the first phase.")],
    exact: Annotated[Path, typer.Argument(metavar="EXACT", help="Some of its faults at the exact level.")],
    cheap_cost: Annotated[
        float,
        typer.Option(help="What a fault costs at the cheap level, such as seconds.", envvar="SABOTEUR_CHEAP_COST"),
    ],
    exact_cost: Annotated[float, typer.Option(help="What it costs at the exact level.", envvar="SABOTEUR_EXACT_COST")],
    strategy: Annotated[
        str,
        typer.Option(
            help="stratified, difference or regression; exact_alone leaves the cheap level out.",
            envvar="SABOTEUR_STRATEGY",
        ),
    ] = "stratified",
    budget: Annotated[
        float | None,
        typer.Option(help="Also rank the strategies for a campaign of that cost.", envvar="SABOTEUR_BUDGET"),
    ] = None,
    criterion: Criterion = None,
    json: Json = False,
) -> None:
    """Combine a cheap level on many faults and the exact level on some of them into one estimate."""
    from saboteur.campaign import Results
    from saboteur.reliability import hybrid as reliability
    from saboteur.statistics import hybrid as statistics

    costs = statistics.Costs(cheap_cost, exact_cost)
    with Results.open(cheap) as first, Results.open(exact) as second:
        found = reliability.hybrid(first, second, costs, criterion=criterion, strategy=strategy)  # type: ignore[arg-type]
        sample = reliability.paired(first, second, criterion)
        population = first.space.size
    plans: tuple[statistics.Plan, ...] = ()
    if budget is not None:
        plans = statistics.rank({"cheap": sample}, population, {"cheap": costs}, budget, found.estimate.confidence)
    if json:
        return show_json({"strategy": found.strategy, "estimate": found.estimate, "gain": found.gain, "plans": plans})
    e = found.estimate
    classes = zip(reliability.CLASSES, sample.first.tolist(), sample.n.tolist(), sample.k.tolist(), strict=True)
    show(
        table("Both levels, by cheap outcome", ["cheap outcome", "cheap>", "exact>", "of these SDC>"], classes),
        facts(
            [
                ("SDC of faults", f"{percent(e.best)} [{percent(e.low)}, {percent(e.high)}]"),
                ("how", f"{e.method}, {percent(e.confidence)} confidence, of {number(e.population)} faults"),
                ("gain", str(found.gain)),
            ]
        ),
    )
    if plans:
        show(
            table(
                f"Strategies for a budget of {budget:g}, the best first",
                ["strategy", "cheap>", "exact>", "expected ±>", "gain>", "at least>"],
                (
                    [p.strategy, p.first, p.exact, percent(p.half_width), f"{p.gain.best:.2f}", f"{p.gain.low:.2f}"]
                    for p in plans
                ),
            )
        )


def learn(
    store: StoreArgument,
    file: Annotated[Path, typer.Argument(help="Where to: FILE.yaml.")],
    title: Annotated[
        str | None, typer.Option(help="Of the model; the campaign's name if absent.", envvar="SABOTEUR_TITLE")
    ] = None,
    by_shape: Annotated[
        bool,
        typer.Option(
            "--by-shape",
            help="Take layers of like shapes together, for other networks than this one.",
            envvar="SABOTEUR_BY_SHAPE",
        ),
    ] = False,
) -> None:
    """Learn an error model from a finished campaign on an accelerator, to inject it at the software level."""
    from saboteur.campaign import Results
    from saboteur.reliability.learning import learn_from

    with Results.open(store) as results:
        model = learn_from(results, title)
    model = model.by_shape() if by_shape else model
    model.write(file)
    faults = number(model.source.faults)
    if model.profiles:
        show(
            table(
                f"{model.title}, from {faults} faults",
                ["layer", "component", "faults>", "inferences>", "masked>", "patterns"],
                (
                    [
                        profile.layer or profile.shape,
                        profile.component,
                        profile.population,
                        profile.inferences,
                        percent(profile.masked),
                        ", ".join(f"{part.pattern} {part.count}" for part in profile.patterns),
                    ]
                    for profile in model.profiles
                ),
            )
        )
    if model.permanent:
        show(
            table(
                f"{model.title}, permanent, from {faults} faults",
                ["component", "fault", "faults>", "observed>", "masked>", "places>", "reaches"],
                (
                    [
                        profile.component,
                        profile.fault,
                        profile.population,
                        profile.faults,
                        percent(profile.masked),
                        len(profile.places),
                        ", ".join(
                            f"{of.layer or of.shape} {percent(of.reached / of.inferences)}" for of in profile.layers
                        ),
                    ]
                    for profile in sorted(model.permanent, key=_by_component_and_bit)
                ),
            )
        )


def _by_component_and_bit(profile: PermanentProfile) -> tuple[str, list[str | int]]:
    """Orders profiles, with bit 8 before bit 10."""
    parts = re.split(r"(\d+)", profile.fault)
    return profile.component, [int(part) if part.isdigit() else part for part in parts]
