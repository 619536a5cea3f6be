"""The command line as a whole: its commands, and how an error ends it."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from saboteur import __version__
from saboteur.cli import about, campaigns, levels, stores
from saboteur.cli.terminal import say
from saboteur.errors import SaboteurError

STOPPED = 3


class _Commands(TyperGroup):
    """Ends an error that a user can act on with one clear line, and an interrupt with the data kept."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except SaboteurError as error:
            say(f"[bold red]error[/] {_plain(str(error))}")
            raise typer.Exit(1) from error
        except BrokenPipeError:
            # Whoever read our output has gone (`saboteur list | head`); nothing is left to say.
            sys.stdout = None
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            say("[bold yellow]stopped[/] what was finished is kept; the same command goes on from there")
            raise typer.Exit(STOPPED) from None


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(" ".join(text.split()))


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Assess how reliably a deep neural network runs on faulty hardware, by fault injection.",
    epilog="Exit codes: 0 done · 1 failure · 2 wrong usage · 3 stopped early, data kept. "
    "Every option can be set by the environment variable shown with it.",
)

_ASSESS, _RESULTS, _ABOUT = "Assess", "Results", "About"

app.command("init", rich_help_panel=_ASSESS)(campaigns.init)
app.command("check", rich_help_panel=_ASSESS)(campaigns.check)
app.command("plan", rich_help_panel=_ASSESS)(campaigns.plan)
app.command("run", rich_help_panel=_ASSESS)(campaigns.run)
app.command("worker", rich_help_panel=_ASSESS)(campaigns.worker)
app.command("status", rich_help_panel=_RESULTS)(stores.status)
app.command("report", rich_help_panel=_RESULTS)(stores.report)
app.command("replay", rich_help_panel=_RESULTS)(stores.replay)
app.command("compare", rich_help_panel=_RESULTS)(stores.compare)
app.command("levels", rich_help_panel=_RESULTS)(levels.levels)
app.command("hybrid", rich_help_panel=_RESULTS)(levels.hybrid)
app.command("learn", rich_help_panel=_RESULTS)(levels.learn)
app.command("rescore", rich_help_panel=_RESULTS)(stores.rescore)
app.command("export", rich_help_panel=_RESULTS)(stores.export)
app.command("faults", rich_help_panel=_RESULTS)(stores.faults)
app.command("list", rich_help_panel=_ABOUT)(about.list_parts)
app.command("schema", rich_help_panel=_ABOUT)(about.schema)
app.command("doctor", rich_help_panel=_ABOUT)(about.doctor)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"saboteur {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the ``saboteur`` command."""
    app(prog_name="saboteur")
