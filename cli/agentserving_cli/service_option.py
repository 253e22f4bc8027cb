"""Classes of service on the command line."""

from __future__ import annotations

from typing import Any

import click
from agentserving.contract.service_class import SERVICE_WORDS, ServiceClass, read_service_class


class ServiceClassType(click.Choice[str]):
    """interactive, standard or batch; `any` as well where nothing may be said. Gives a ServiceClass."""

    def __init__(self, *, nothing: str = "") -> None:
        super().__init__([*SERVICE_WORDS, *([nothing] if nothing else [])], case_sensitive=False)
        self._nothing = nothing

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, ServiceClass):
            return value
        word = super().convert(value, param, ctx)
        return ServiceClass.UNSPECIFIED if word == self._nothing else read_service_class(word)
