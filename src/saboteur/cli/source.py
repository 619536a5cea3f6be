"""What a command is told to work on: a campaign file, an embedded example, or the settings of a run."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saboteur.errors import CampaignError, near

if TYPE_CHECKING:
    from saboteur.campaign import Campaign

EXAMPLES = files("saboteur.cli") / "examples"

CampaignArgument = Annotated[
    str, typer.Argument(metavar="CAMPAIGN", help="A campaign file, or the name of an embedded example.")
]
StoreArgument = Annotated[Path, typer.Argument(metavar="STORE", help="The folder that holds a campaign's results.")]
Json = Annotated[bool, typer.Option("--json", help="Give the data as JSON.", envvar="SABOTEUR_JSON")]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda or cuda:N, instead of the file's.", envvar="SABOTEUR_DEVICE")
]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Worker processes, instead of the file's.", envvar="SABOTEUR_WORKERS")
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads of each worker.", envvar="SABOTEUR_THREADS")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Inputs in one pass.", envvar="SABOTEUR_BATCH_SIZE")]


def example_names() -> list[str]:
    """The embedded example campaigns."""
    return sorted(entry.name.removesuffix(".yaml") for entry in EXAMPLES.iterdir() if entry.name.endswith(".yaml"))


def read_campaign(source: str, **resources: Any) -> Campaign:
    """The campaign of a file or embedded example, with some resources changed.

    Raises:
        CampaignError: when it is neither, or not a valid campaign.
    """
    from saboteur.campaign import Campaign, Resources

    path, names = Path(source), example_names()
    if path.is_file():
        campaign = Campaign.from_yaml(path)
    elif source in names:
        campaign = Campaign.from_yaml((EXAMPLES / f"{source}.yaml").read_text(encoding="utf-8"))
    elif path.is_dir():
        raise CampaignError(f"campaign: {source} is a folder; name a campaign file in it")
    else:
        raise CampaignError(
            f"campaign: {source!r} is neither a file nor an embedded example{near(source, names)}; "
            "`saboteur init` writes a file to start from"
        )
    changed = {name: value for name, value in resources.items() if value is not None}
    if not changed:
        return campaign
    kept = campaign.resources.model_dump()
    return campaign.model_copy(update={"resources": Resources.model_validate(kept | changed)})
