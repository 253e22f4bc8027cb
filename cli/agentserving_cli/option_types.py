"""Types of options that several commands have."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import click
from agentserving.contract import budgets
from agentserving.contract.budgets import Budget

from agentserving_cli.audit_log import duration


class BudgetText(click.ParamType[Budget]):
    """tokens=200k,engine-seconds=300,calls=50, or some of these."""

    name = "budget"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Budget:
        if isinstance(value, Budget):
            return value
        try:
            return budgets.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class DurationText(click.ParamType[timedelta]):
    """90s, 15m, 1h, 2d."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        if isinstance(value, timedelta):
            return value
        try:
            return duration(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
