"""Commands that take a campaign: init, check, plan, run, worker."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from saboteur.cli.source import (
    EXAMPLES,
    BatchSize,
    CampaignArgument,
    Device,
    Json,
    StoreArgument,
    Threads,
    Workers,
    read_campaign,
)
from saboteur.cli.terminal import duration, facts, number, percent, say, show, show_json, table
from saboteur.errors import CampaignError

if TYPE_CHECKING:
    from saboteur.campaign import Session

_ROWS = 40


def init(
    name: Annotated[str, typer.Argument(help="Name of the campaign, and of its file.")] = "campaign",
    model: Annotated[
        str | None, typer.Option(help="Your model: path/to/file.py:function that returns a torch.nn.Module.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Your data: path/to/file.py:function that returns (inputs, labels), or an .npz with x and y."
        ),
    ] = None,
) -> None:
    """Write a commented campaign file to start from; nothing is ever overwritten."""
    if (model is None) != (data is None):
        raise typer.BadParameter("--model and --data go together")
    path = Path(name if name.endswith((".yaml", ".yml")) else f"{name}.yaml")
    target = "workload: digits-cnn" if model is None else f"model: {_quoted(model)}\n  data: {_quoted(data or '')}"
    text = (EXAMPLES / "campaign.template").read_text(encoding="utf-8")
    text = text.replace("@NAME@", _quoted(path.stem)).replace("@TARGET@", target)
    try:
        with path.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError as error:
        raise CampaignError(f"name: {path} exists; choose another name, it is not overwritten") from error
    except OSError as error:
        raise CampaignError(f"name: cannot write {path}: {error.strerror}") from error
    show(str(path))
    say(f"next: [bold]saboteur check {path}[/], then [bold]plan[/] and [bold]run[/]")


def _quoted(text: str) -> str:
    import json

    return json.dumps(text, ensure_ascii=False)


def check(campaign: CampaignArgument, device: Device = None, json: Json = False) -> None:
    """Validate a campaign, run its target fault-free twice, and list the fault space; nothing is injected."""
    from saboteur.campaign import Session

    with Session.open(read_campaign(campaign, device=device)) as session:
        space, golden = session.space, session.golden
        sites = [
            {
                "site": region.site,
                "layer": region.layer,
                "component": region.component,
                "format": region.format.name,
                "model": region.model.name,
                "duration": region.duration,
                "shape": list(region.shape),
                "steps": region.steps,
                "faults": region.size,
            }
            for region in space.regions
        ]
        found = {
            "campaign": session.campaign.name,
            "id": session.id,
            "fingerprint": session.target.fingerprint,
            "golden": _golden(session),
            "population": space.size,
            "sites": sites,
        }
        if json:
            return show_json(found)
        layers: dict[str, int] = {}
        for site in sites:
            layers[str(site["layer"])] = layers.get(str(site["layer"]), 0) + int(site["faults"])
        show(
            facts(
                [
                    ("campaign", Text.assemble(session.campaign.name, (f"  {session.id}", "dim"))),
                    ("target", Text(session.target.fingerprint[:16], "dim")),
                    ("golden run", _golden_in_words(session)),
                    ("environment", ", ".join(f"{key} {value}" for key, value in golden.environment.items()) or "–"),
                    ("criteria", ", ".join(criterion.name for criterion in session.campaign.criteria)),
                    ("population", f"{number(space.size)} single faults"),
                ]
            ),
            table(
                "Fault space",
                ["site", "component", "format", "fault", "duration", "shape", "steps>", "faults>", "share>"],
                (
                    [
                        s["site"],
                        s["component"],
                        s["format"],
                        s["model"],
                        s["duration"],
                        " × ".join(map(str, s["shape"])) or "scalar",  # type: ignore[arg-type]
                        s["steps"],
                        s["faults"],
                        percent(int(s["faults"]) / space.size),
                    ]
                    for s in sites
                ),
            ),
        )
        if 1 < len(layers) < len(sites):
            show(
                table(
                    "By layer",
                    ["layer", "faults>", "share>"],
                    ([name, size, percent(size / space.size)] for name, size in layers.items()),
                )
            )
        say("[green]the campaign can be run[/]")


def _golden(session: Session) -> dict[str, object]:
    golden = session.golden
    return {
        "digest": golden.digest,
        "inputs": golden.inputs,
        "outputs": golden.kind,
        "shape": list(golden.outputs.shape[1:]),
        "accuracy": golden.accuracy if golden.labels is not None and golden.scores_classes else None,
        "environment": golden.environment,
    }


def _golden_in_words(session: Session) -> str:
    golden = _golden(session)
    words = f"{number(golden['inputs'])} inputs, {golden['outputs']} of shape {golden['shape']}, the same twice"
    accuracy = golden["accuracy"]
    return words + (f"; accuracy {percent(accuracy)}" if isinstance(accuracy, float) else "")


def plan(
    campaign: CampaignArgument,
    workers: Workers = None,
    device: Device = None,
    pilot: Annotated[
        float,
        typer.Option(
            min=0, help="Seconds of pilot injections for the predicted time; 0 for none.", envvar="SABOTEUR_PILOT"
        ),
    ] = 3.0,
    all_strata: Annotated[bool, typer.Option("--all", help="Show every stratum, however many.")] = False,
    json: Json = False,
) -> None:
    """Show how many faults will be injected in each stratum, for which margin, and how long it will take."""
    from saboteur.campaign import Session, forecast

    with Session.open(read_campaign(campaign, workers=workers, device=device)) as session:
        made, sampler = session.plan, session.sampler
        if pilot:
            say(f"[dim]pilot of about {pilot:g} s …[/]")
        predicted = forecast(session, pilot) if pilot else None
        strata = [
            {
                "stratum": h,
                "name": stratum.name,
                "population": stratum.size,
                "prior": float(made.prior[h]),
                "n": int(made.n[h]),
            }
            for h, stratum in enumerate(sampler.strata)
        ]
        inputs = session.campaign.inputs_per_fault or session.golden.inputs
        total = int(made.n.sum())
        if json:
            return show_json(
                {
                    "campaign": session.campaign.name,
                    "id": session.id,
                    "plan": made.in_words(),
                    "population": session.space.size,
                    "n": total,
                    "inferences": total * min(inputs, session.golden.inputs),
                    "strata": strata,
                    "forecast": predicted and {"seconds": predicted.seconds, **vars(predicted)},
                }
            )
        shown = strata if all_strata or len(strata) <= _ROWS else strata[:_ROWS]
        show(
            table(
                "Strata",
                ["#>", "stratum", "population>", "prior>", "n>", "share>"],
                (
                    [s["stratum"], s["name"], s["population"], s["prior"], s["n"], percent(s["n"] / s["population"])]
                    for s in shown
                ),
            )
        )
        if len(shown) < len(strata):
            show(f"[dim]… and {len(strata) - len(shown)} more strata (--all shows them)[/]\n")
        show(
            facts(
                [
                    ("plan", made.in_words()),
                    ("population", f"{number(session.space.size)} single faults"),
                    (
                        "to inject",
                        f"{number(total)} faults × {number(min(inputs, session.golden.inputs))} inputs"
                        + (" in the pilot round; more as the results ask for" if _refines(session) else ""),
                    ),
                    (
                        "predicted",
                        "–"
                        if predicted is None
                        else f"{duration(predicted.seconds)} with {predicted.workers} "
                        f"worker{'s' if predicted.workers > 1 else ''} (pilot: {number(predicted.pilot)} faults in "
                        f"{duration(predicted.pilot_s)})",
                    ),
                ]
            )
        )


def _refines(session: Session) -> bool:
    return bool(getattr(session.campaign.sampling, "refine", False))


def run(
    campaign: CampaignArgument,
    store: Annotated[
        Path | None,
        typer.Option(help="Folder for the results; runs/NAME if absent.", envvar="SABOTEUR_STORE"),
    ] = None,
    workers: Workers = None,
    threads: Threads = None,
    device: Device = None,
    batch_size: BatchSize = None,
    report: Annotated[bool, typer.Option(help="Write report.html into the store.", envvar="SABOTEUR_REPORT")] = True,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Exit 1 unless the requirement is met.", envvar="SABOTEUR_STRICT"),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.", envvar="SABOTEUR_QUIET")] = False,
    json: Json = False,
) -> None:
    """Run a campaign, or go on with one that was stopped; one that is finished is not run again."""
    from saboteur.campaign import Results
    from saboteur.campaign import run as run_campaign
    from saboteur.cli.progress import Display
    from saboteur.cli.summary import finish, headline

    made = read_campaign(campaign, workers=workers, threads=threads, device=device, batch_size=batch_size)
    path = store or Path("runs") / made.name
    say(f"[bold]{made.name}[/] → {path}")
    with Display(made, quiet) as display:
        run_campaign(made, path, display.update, display.stopping)
    with Results.open(path) as results:
        if display.injected == 0:
            say("[dim]nothing left to run: the campaign is finished[/]")
        written = None
        if report:
            from saboteur.report import write_html

            written = path / "report.html"
            write_html(results, written)
        summary = headline(results, written)
    finish(summary, json, strict)


def worker(
    store: StoreArgument,
    threads: Threads = None,
    device: Device = None,
    wait: Annotated[
        float,
        typer.Option(min=0, help="Leave when there has been no work for so many seconds.", envvar="SABOTEUR_WAIT"),
    ] = 60.0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.", envvar="SABOTEUR_QUIET")] = False,
) -> None:
    """Help a running campaign from a further process, here or on another machine that sees the same folder.

    The store is begun, and its rounds are decided, by `saboteur run`; any number of workers may come and go.
    """
    from saboteur.campaign.worker import help_with

    def report(units: int, trials: int) -> None:
        if not quiet:
            say(f"[dim]{units} units, {number(trials)} faults[/]")

    units, trials = help_with(store, threads=threads, device=device, wait_s=wait, on_unit=report)
    show(f"{units} units, {trials} faults")
