"""The live display of a running campaign, on stderr."""

from __future__ import annotations

from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn

from saboteur.cli.terminal import duration, messages, number, percent, say

if TYPE_CHECKING:
    from saboteur.campaign import Campaign
    from saboteur.campaign.runner import Progress as State

_LINE_EVERY_S = 10.0
_WIDE = 130


class Display:
    """Shows rate, time left and what has been found; a line every ten seconds where stderr is no terminal.

    The rate of SDC is that of the faults injected since the command began, with its Wilson interval. It is
    no estimate for the population while strata are still to come; the results are.
    """

    def __init__(self, campaign: Campaign, quiet: bool = False):
        self.injected = 0
        self._confidence = campaign.sampling.confidence
        self._question = campaign.question.name
        self._quiet = quiet
        self._live = messages.is_terminal and not quiet
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24 if messages.width >= _WIDE else 8),
            TextColumn("{task.fields[counted]}"),
            TextColumn("[dim]{task.fields[speed]}[/]"),
            TextColumn("{task.fields[found]}"),
            console=messages,
            transient=True,
        )
        self._bar: TaskID | None = None
        self._round = -1
        self._last_line = monotonic()

    def __enter__(self) -> Display:
        if self._live:
            self._bars.start()
            self._bar = self._bars.add_task("golden run", total=None, counted="", speed="", found="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live:
            self._bars.stop()

    def stopping(self) -> None:
        """Say what an interrupt still waits for."""
        say("[yellow]stopping[/] workers finish the units that they are at; interrupt again to stop them at once")

    def update(self, state: State) -> None:
        """Show the state after a work unit."""
        if state.round != self._round:
            self._round, self._before = state.round, self.injected
        self.injected = self._before + state.fresh
        counted = f"{number(state.done)}/{number(state.planned)} faults"
        left = state.remaining_s
        speed = f"{state.rate:,.0f}/s" if state.rate >= 10 else f"{state.rate:.2g}/s"
        speed += "" if left is None else f", {duration(left)} left"
        found = self._found(state)
        if self._bar is not None:
            self._bars.update(
                self._bar,
                description=f"round {state.round + 1}",
                total=state.planned,
                completed=state.done,
                counted=counted,
                speed=speed,
                found=found,
            )
        elif not self._quiet and monotonic() - self._last_line >= _LINE_EVERY_S:
            self._last_line = monotonic()
            say(f"round {state.round + 1}: {counted}, {speed}; {found}")

    def _found(self, state: State) -> str:
        from saboteur.statistics import wilson

        valid = state.fresh - state.invalid
        text = ""
        if valid > 0:
            low, high = (100 * float(bound) for bound in wilson(state.sdc, valid, self._confidence))
            text = f"[yellow]SDC {percent(state.sdc / valid)}[/] [dim]\\[{low:.3g} … {high:.3g}][/]"
            text += f" DUE {number(state.due)}"
            if messages.width >= _WIDE:
                text += f" [dim]by {escape(self._question)}[/]"
        return text + (f", [red]invalid {number(state.invalid)}[/]" if state.invalid else "")
