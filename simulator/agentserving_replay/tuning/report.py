"""What `agentserving tune` prints: the gain, for whom it is worse, and the policy as it is applied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agentserving.contract.policy import Policy
from rich.console import Console
from rich.table import Table

from agentserving_replay.tuning.gain import Gain
from agentserving_replay.tuning.policy_text import as_json, as_yaml, in_words
from agentserving_replay.tuning.search import Found

# Policies that were tried and are told, the best first.
TOLD = 5


@dataclass(frozen=True, slots=True)
class Judged:
    """`proposal` None: nothing was better on the first half. Gains are those on the second half."""

    against: Policy
    proposal: Policy | None
    goal: str
    found: Found
    figures: dict[str, Gain]
    groups: list[Gain]

    @property
    def pays(self) -> bool:
        """The proposal's gain is not chance."""
        return self.proposal is not None and self.figures[self.goal].sure


def verdict(judged: Judged) -> str:
    """One sentence."""
    told = judged.figures[judged.goal]
    if judged.proposal is None:
        return (
            f"No change pays: on the first half nothing was better than {judged.against.name} ({judged.found.ended})."
        )
    span = f"{told.gain:.1%} (95 %: {told.low:.1%} to {told.high:.1%})"
    if not judged.pays:
        return f"No change pays: what was best on the first half gains {span} in {told.what} on the second."
    worse = [gain.what for gain in judged.groups if gain.sure_loss]
    perhaps = [gain.what for gain in judged.groups if gain.gain < 0 and not gain.sure_loss]
    text = f"It pays: {told.what} goes down by {span}."
    text += f" It is worse for: {', '.join(worse)}." if worse else " No group is surely worse."
    return text + (f" Perhaps worse for: {', '.join(perhaps)}." if perhaps else "")


def print_report(console: Console, judged: Judged, title: str, out: Path | None) -> None:
    """Tables, the verdict, and the policy when it pays; to a file, too, when one is named."""

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    say(title)
    console.print(_tried_table(judged))
    if judged.proposal is not None:
        rows = list(judged.figures.values())
        console.print(gain_table("on the second half", judged.against.name, rows))
        console.print(gain_table("mean program latency (s) of", judged.against.name, judged.groups))
    say(verdict(judged))
    if not judged.pays or judged.proposal is None:
        return
    say(f"\nThe policy: {in_words(judged.proposal)}")
    if out is not None:
        out.write_text(as_json(judged.proposal))
        say(f"agentserving policy set {out}")
    else:
        say("For `agentserving policy set FILE` (--out FILE writes it):\n" + as_json(judged.proposal))
    say("For an AgentServingCluster, in its spec:\n" + as_yaml(judged.proposal))


def _tried_table(judged: Judged) -> Table:
    what = judged.figures[judged.goal].what
    table = Table(
        "policy", f"{what}, first half", title=f"{len(judged.found.tried)} policies tried: {judged.found.ended}"
    )
    best = sorted(judged.found.tried[1:], key=lambda tried: tried.cost)[:TOLD]
    for tried in (judged.found.tried[0], *best):
        name = "in force" if tried is judged.found.tried[0] else tried.turned
        table.add_row(f"{tried.policy.name} ({name}): {in_words(tried.policy)}", f"{tried.cost:.2f}")
    return table


def gain_table(heading: str, against: str, rows: Sequence[Gain]) -> Table:
    """A row a figure or group."""
    table = Table(heading, "programs", against, "proposal", "gain", "95 % interval", "")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        word = "better" if row.sure else ("WORSE" if row.sure_loss else "not sure")
        table.add_row(
            row.what, str(row.programs), f"{row.base:.2f}", f"{row.other:.2f}", f"{row.gain:+.1%}",
            f"{row.low:+.1%} to {row.high:+.1%}", word,
        )  # fmt: skip
    return table
