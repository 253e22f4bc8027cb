"""Envoy's certificates: checked before it gets them, and given to it again when their files have changed."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import structlog
from agentserving.contract.replaced_files import settled
from agentserving_process.engine_tls import EngineTls, check_engine_files
from agentserving_process.options import option

from agentserving_gateway.envoy.certificates import engine_client_secret, engines_secret, front_secret
from agentserving_gateway.envoy.extensions import Json
from agentserving_gateway.envoy.settings import FrontSettings

log = structlog.get_logger()

# Envoy uses a new certificate within this time of its files' change.
LOOK_EVERY_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontTls:
    """TLS for clients and to engines"""

    front_cert: Path | None = option(None, "PEM file of the certificate chain that clients see; none: no TLS")
    front_key: Path | None = option(None, "PEM file of its private key")
    engine_ca: Path | None = option(None, "PEM file of the CA of engines' certificates; none: engines speak http")
    engine_cert: Path | None = option(None, "PEM file of the gateway's certificate, for engines that ask for one")
    engine_key: Path | None = option(None, "PEM file of its private key")

    def __post_init__(self) -> None:
        if (self.front_cert is None) != (self.front_key is None):
            raise ValueError("--front-cert and --front-key: give both or neither")
        check_engine_files(self.engine_ca, self.engine_cert, self.engine_key)

    def to_engines(self) -> EngineTls:
        """For the picker's own requests. CannotStartError when a file cannot be read."""
        return EngineTls(self.engine_ca, self.engine_cert, self.engine_key)

    def added_to(self, settings: FrontSettings) -> FrontSettings:
        """Settings with these files; Envoy and the picker may have been started in different directories."""
        return replace(
            settings,
            front_cert=self.front_cert and self.front_cert.absolute(),
            front_key=self.front_key and self.front_key.absolute(),
            engine_ca=self.engine_ca and self.engine_ca.absolute(),
            engine_cert=self.engine_cert and self.engine_cert.absolute(),
            engine_key=self.engine_key and self.engine_key.absolute(),
        )


def check(cert: Path, key: Path) -> None:
    """ValueError when the two cannot be read or do not belong together. Envoy alone would wait for better ones."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=_no_password)
    except ssl.SSLError as error:
        raise ValueError(f"{cert}, {key}: not a certificate and its private key: {error.reason or error}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ValueError(f"{cert}, {key}: {reason}") from None


def _no_password() -> bytes:
    raise ValueError("the private key is encrypted: give one without a password")


def check_ca(ca: Path) -> None:
    """ValueError when the file has no certificate."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(ca)
    except ssl.SSLError as error:
        raise ValueError(f"{ca}: not a CA's certificate: {error.reason or error}") from None
    except OSError as error:
        raise ValueError(f"{ca}: {error.strerror}") from None


class CertificateFiles:
    """Files that Envoy has by the name in a secret; `run` is a supervised task of the picker."""

    def __init__(self, secret: Path, content: Json, files: Sequence[Path], check: Callable[..., None]) -> None:
        """`secret`: the file that Envoy watches, and its content. `check`: takes the files; ValueError."""
        self._secret, self._content, self._files, self._check = secret, content, files, check
        self._announced: tuple[bytes, ...] | None = None
        self._complaint = ""

    async def run(self) -> None:
        """Looks at the files until it is cancelled."""
        while True:
            self.look()
            await asyncio.sleep(LOOK_EVERY_S)

    def look(self) -> None:
        """Lets Envoy read the files again when they have changed; at first too, since they may have while away."""
        try:
            found = settled(lambda: tuple(each.read_bytes() for each in self._files))
            if found == self._announced:
                return
            self.announce()
        except (OSError, ValueError) as error:
            if str(error) != self._complaint:
                log.error("cannot use new certificates, Envoy has the previous ones", error=str(error))
            self._complaint = str(error)
            return
        if self._announced is not None:
            log.info("Envoy's certificates were renewed", files=[str(each) for each in self._files])
        self._announced, self._complaint = found, ""

    def announce(self) -> None:
        """Writes the file that Envoy watches, if they are good; a rename is what it notices. OSError, ValueError."""
        self._check(*self._files)
        self._secret.parent.mkdir(parents=True, exist_ok=True)
        # Not in the watched directory: Envoy looks at each file that moves into it.
        scratch = self._secret.parent.parent / f"{self._secret.name}.{os.getpid()}"
        scratch.write_text(json.dumps(self._content))
        scratch.replace(self._secret)


def certificate_files(settings: FrontSettings) -> list[CertificateFiles]:
    """Those that these settings name."""
    found = []
    if settings.front_cert is not None and settings.front_key is not None:
        files = (settings.front_cert, settings.front_key)
        found.append(CertificateFiles(settings.front_secret, front_secret(settings), files, check))
    if settings.engine_ca is not None:
        found.append(
            CertificateFiles(settings.engines_secret, engines_secret(settings), (settings.engine_ca,), check_ca)
        )
    if settings.engine_cert is not None and settings.engine_key is not None:
        files = (settings.engine_cert, settings.engine_key)
        found.append(CertificateFiles(settings.engine_client_secret, engine_client_secret(settings), files, check))
    return found
