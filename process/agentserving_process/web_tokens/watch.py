"""Flags for clients' JWTs, and the file of the issuer's keys, which is read again when it changes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from agentserving_process.options import option
from agentserving_process.supervision import CannotStartError
from agentserving_process.web_tokens.jwks import ALGORITHMS, MAX_BYTES, Jwks, read_jwks
from agentserving_process.web_tokens.verifier import TokenRules, TokenVerifier

log = structlog.get_logger()

# A new set is in force within this time of its file's change.
LOOK_EVERY_S = 1.0
_State = tuple[int, int, int] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenOptions:
    """JWTs of clients, beside keys"""

    jwt_issuer: str = option("", "the claim iss of JWTs that are accepted instead of keys; none: none are")
    jwt_audience: tuple[str, ...] = option((), "a JWT's claim aud must contain one of these")
    jwt_jwks_file: str = option("", "file with the issuer's public keys, a JWK Set; read again when it changes")
    jwt_algorithms: tuple[str, ...] = option(
        ("RS256", "ES256"), f"signatures that are accepted: {', '.join(ALGORITHMS)}"
    )
    jwt_tenant_claim: str = option(
        "tenant", "claim that names a client's tenant; a JSON pointer for nested ones: /kubernetes.io/namespace"
    )
    jwt_leeway_s: float = option(30.0, "seconds by which clocks may differ", least=0, most=300)

    def __post_init__(self) -> None:
        if not self.jwt_issuer:
            if self.jwt_audience or self.jwt_jwks_file:
                raise ValueError("--jwt-audience and --jwt-jwks-file: --jwt-issuer is needed with them")
            return
        # Without an audience, what an issuer signs for any other service would open this one.
        if not self.jwt_audience or not self.jwt_jwks_file:
            raise ValueError("--jwt-issuer: --jwt-audience and --jwt-jwks-file are needed with it")
        if not self.jwt_tenant_claim:
            raise ValueError("--jwt-tenant-claim: a name is needed")
        for each in self.jwt_algorithms:
            if each not in ALGORITHMS:
                raise ValueError(f"--jwt-algorithms: {each!r} is not one of {', '.join(ALGORITHMS)}")
        if not self.jwt_algorithms:
            raise ValueError("--jwt-algorithms: at least one is needed")

    def watch(self) -> JwksWatch | None:
        """None when no JWTs are accepted. CannotStartError when the file cannot be read."""
        if not self.jwt_issuer:
            return None
        rules = TokenRules(
            issuer=self.jwt_issuer,
            audiences=self.jwt_audience,
            algorithms=self.jwt_algorithms,
            tenant_claim=self.jwt_tenant_claim,
            leeway_s=self.jwt_leeway_s,
        )
        return JwksWatch(Path(self.jwt_jwks_file), rules)


class JwksWatch:
    """`run` is its supervised task; `verifier` has the keys of the file's last readable version.

    A file that cannot be read any more does not change the keys; one that is a JWK Set does, also if it has none.
    """

    def __init__(self, file: Path, rules: TokenRules) -> None:
        """CannotStartError when the file cannot be read."""
        self._file, self._rules = file, rules
        # Called with the new keys after each change.
        self.on_change: set[Callable[[Jwks], None]] = set()
        self._state = _state(file)
        self._complaint = ""
        try:
            self.verifier = TokenVerifier(rules, self._read())
        except (OSError, ValueError) as error:
            raise CannotStartError(f"--jwt-jwks-file: {file}: {_reason(error)}") from None

    async def run(self) -> None:
        """Looks at the file until it is cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            self.look()

    def look(self) -> None:
        """Takes in a change of the file."""
        state = _state(self._file)
        if state == self._state and not self._complaint:
            return
        try:
            jwks = self._read()
        except (OSError, ValueError) as error:
            if _reason(error) != self._complaint:
                self._complaint = _reason(error)
                log.error(
                    "cannot read the JWK Set, using the previous one", path=str(self._file), error=self._complaint
                )
            return
        self._state, self._complaint = state, ""
        if jwks.keys == self.verifier.jwks.keys:
            return
        self.verifier.replace(jwks)
        log.info("the JWK Set has changed", keys=sorted(jwks.keys))
        for tell in list(self.on_change):
            tell(jwks)

    def _read(self) -> Jwks:
        with self._file.open("rb") as file:
            jwks = read_jwks(file.read(MAX_BYTES + 1), self._rules.algorithms)
        for why in jwks.skipped:
            log.warning("a key of the JWK Set is not used", path=str(self._file), reason=why)
        return jwks


def _state(file: Path) -> _State:
    """Changes with the file, also when a link on the way to it is replaced, as in a mounted Secret."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
