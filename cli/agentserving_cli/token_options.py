"""Options of `up` for the JWTs of an organisation's issuer."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

_OPTIONS = (
    click.option("--jwt-issuer", default="", help="Accept JWTs with this claim iss instead of keys."),
    click.option("--jwt-audience", default="", help="What their claim aud must contain."),
    click.option(
        "--jwt-jwks-file",
        type=click.Path(exists=True, dir_okay=False, resolve_path=True, path_type=Path),
        help="The issuer's public keys, a JWK Set; read again when the file changes.",
    ),
    click.option(
        "--jwt-tenant-claim",
        default="tenant",
        show_default=True,
        help="The claim that names a tenant; a JSON pointer for a nested one.",
    ),
    click.option("--jwt-algorithms", default="RS256,ES256", show_default=True, help="Accepted signatures."),
)


def token_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command the options, as `token_flags`: flags of control planes and pickers."""

    @functools.wraps(command)
    def found(
        *arguments: Any, jwt_issuer: str, jwt_audience: str, jwt_jwks_file: Path | None, jwt_tenant_claim: str,
        jwt_algorithms: str, **chosen: Any,
    ) -> Any:  # fmt: skip
        if (bool(jwt_issuer), bool(jwt_audience), jwt_jwks_file is not None) not in ((True,) * 3, (False,) * 3):
            raise click.UsageError("--jwt-issuer, --jwt-audience and --jwt-jwks-file: give all three or none")
        if jwt_issuer and not chosen["auth"]:
            raise click.UsageError("--jwt-issuer: without --no-auth only, since JWTs are accepted beside keys")
        flags = (
            f"--jwt-issuer={jwt_issuer}", f"--jwt-audience={jwt_audience}", f"--jwt-jwks-file={jwt_jwks_file}",
            f"--jwt-tenant-claim={jwt_tenant_claim}", f"--jwt-algorithms={jwt_algorithms}",
        )  # fmt: skip
        return command(*arguments, token_flags=flags if jwt_issuer else (), **chosen)

    for option in reversed(_OPTIONS):
        found = option(found)
    return found
