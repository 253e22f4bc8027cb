"""The front's certificate: checked before Envoy gets it, and given to Envoy again when its files have changed."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
from dataclasses import dataclass, replace
from pathlib import Path

import structlog
from agentserving.contract.replaced_files import settled
from agentserving_process.options import option

from agentserving_gateway.envoy.certificates import front_secret
from agentserving_gateway.envoy.settings import FrontSettings

log = structlog.get_logger()

# Envoy uses a new certificate within this time of its files' change.
LOOK_EVERY_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontTls:
    """TLS for clients"""

    front_cert: Path | None = option(None, "PEM file of the certificate chain that clients see; none: no TLS")
    front_key: Path | None = option(None, "PEM file of its private key")

    def __post_init__(self) -> None:
        if (self.front_cert is None) != (self.front_key is None):
            raise ValueError("--front-cert and --front-key: give both or neither")

    def added_to(self, settings: FrontSettings) -> FrontSettings:
        """Settings with these files; Envoy and the picker may have been started in different directories."""
        if self.front_cert is None or self.front_key is None:
            return settings
        return replace(settings, front_cert=self.front_cert.absolute(), front_key=self.front_key.absolute())


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


class FrontCertificate:
    """Of one front; `run` is a supervised task of its picker."""

    def __init__(self, settings: FrontSettings) -> None:
        """`settings` have a certificate."""
        assert settings.front_cert is not None
        assert settings.front_key is not None
        self._settings, self._cert, self._key = settings, settings.front_cert, settings.front_key
        self._announced: tuple[bytes, bytes] | None = None
        self._complaint = ""

    async def run(self) -> None:
        """Looks at the files until it is cancelled."""
        while True:
            self.look()
            await asyncio.sleep(LOOK_EVERY_S)

    def look(self) -> None:
        """Lets Envoy read the files again when they have changed; at first too, since they may have while away."""
        try:
            found = settled(lambda: (self._cert.read_bytes(), self._key.read_bytes()))
            if found == self._announced:
                return
            check(self._cert, self._key)
            self.announce()
        except (OSError, ValueError) as error:
            if str(error) != self._complaint:
                log.error("cannot use the front's new certificate: clients get the previous one", error=str(error))
            self._complaint = str(error)
            return
        if self._announced is not None:
            log.info("the front's certificate was renewed")
        self._announced, self._complaint = found, ""

    def announce(self) -> None:
        """Writes the file that Envoy watches; a rename, which is what it notices. OSError."""
        secret = self._settings.front_secret
        secret.parent.mkdir(parents=True, exist_ok=True)
        # Not in the watched directory: Envoy looks at each file that moves into it.
        scratch = secret.parent.parent / f"{secret.name}.{os.getpid()}"
        scratch.write_text(json.dumps(front_secret(self._settings)))
        scratch.replace(secret)
