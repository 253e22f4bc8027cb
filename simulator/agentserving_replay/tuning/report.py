"""Prints the result of `agentserving tune`: the gain, the groups that lose, and the policy in applicable form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agentserving.contract.policy import Policy
from rich.console import Console
from rich.table import Table

from agentserving_replay.tuning.comparison import Gain
from agentserving_replay.tuning.policy_text import as_json, as_yaml, in_words
from agentserving_replay.tuning.search import Found

# Number of tried policies in the report, best first.
SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """Gains are those on the second half. `proposal` is None when no policy was better on the first half."""

    against: Policy
    proposal: Policy | None
    goal: str
    found: Found
    figures: dict[str, Gain]
    groups: list[Gain]

    @property
    def pays(self) -> bool:
        """The whole interval of the proposal's gain is above zero."""
        return self.proposal is not None and self.figures[self.goal].is_gain


def verdict(judgement: Judgement) -> str:
    """The result in one sentence."""
    gain = judgement.figures[judgement.goal]
    if judgement.proposal is None:
        return (
            f"No change pays: no policy was better than {judgement.against.name} on the first half"
            f" ({judgement.found.ended})."
        )
    span = f"{gain.gain:.1%} (95 %: {gain.low:.1%} to {gain.high:.1%})"
    if not judgement.pays:
        return f"No change pays: the best policy of the first half gains {span} in {gain.what} on the second."
    worse = [group.what for group in judgement.groups if group.is_loss]
    uncertain = [group.what for group in judgement.groups if group.gain < 0 and not group.is_loss]
    text = f"It pays: {gain.what} falls by {span}."
    text += f" It is worse for: {', '.join(worse)}." if worse else " No group certainly loses."
    return text + (f" Possibly worse for: {', '.join(uncertain)}." if uncertain else "")


def print_report(console: Console, judgement: Judgement, title: str, out: Path | None) -> None:
    """Prints tables, the verdict and the policy if it pays, and writes that policy to `out`."""

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    say(title)
    console.print(_tried_table(judgement))
    if judgement.proposal is not None:
        rows = list(judgement.figures.values())
        console.print(gain_table("on the second half", judgement.against.name, rows))
        console.print(gain_table("mean program latency (s) of", judgement.against.name, judgement.groups))
    say(verdict(judgement))
    if not judgement.pays or judgement.proposal is None:
        return
    say(f"\nThe policy: {in_words(judgement.proposal)}")
    if out is not None:
        out.write_text(as_json(judgement.proposal))
        say(f"agentserving policy set {out}")
    else:
        say("For `agentserving policy set FILE` (--out FILE writes it):\n" + as_json(judgement.proposal))
    say("For an AgentServingCluster, in its spec:\n" + as_yaml(judgement.proposal))


def _tried_table(judgement: Judgement) -> Table:
    what = judgement.figures[judgement.goal].what
    table = Table(
        "policy", f"{what}, first half", title=f"{len(judgement.found.tried)} policies tried: {judgement.found.ended}"
    )
    best = sorted(judgement.found.tried[1:], key=lambda tried: tried.cost)[:SHOWN]
    for tried in (judgement.found.tried[0], *best):
        name = "current" if tried is judgement.found.tried[0] else tried.turned
        table.add_row(f"{tried.policy.name} ({name}): {in_words(tried.policy)}", f"{tried.cost:.2f}")
    return table


def gain_table(heading: str, against: str, rows: Sequence[Gain]) -> Table:
    """One row per figure or group."""
    table = Table(heading, "programs", against, "proposal", "gain", "95 % interval", "")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        word = "better" if row.is_gain else ("WORSE" if row.is_loss else "uncertain")
        table.add_row(
            row.what, str(row.programs), f"{row.base:.2f}", f"{row.other:.2f}", f"{row.gain:+.1%}",
            f"{row.low:+.1%} to {row.high:+.1%}", word,
        )  # fmt: skip
    return table
