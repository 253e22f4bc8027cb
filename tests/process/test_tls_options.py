"""Flags for certificates and control planes are checked before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from agentserving_process.supervision import CannotStartError
from agentserving_process.tls import LeaderOptions, TlsOptions


def test_without_a_certificate_a_server_is_in_the_clear() -> None:
    assert TlsOptions(tls_ca="ca.pem").server() is None


def test_a_certificate_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    missing = str(tmp_path / "tls.crt")
    with pytest.raises(CannotStartError, match=r"No such file.*tls\.crt"):
        TlsOptions(tls_cert=missing, tls_key=missing).server()


@pytest.mark.parametrize("options", [TlsOptions, LeaderOptions])
@pytest.mark.parametrize("given", [{"tls_cert": "a"}, {"tls_key": "a"}])
def test_a_certificate_and_its_key_belong_together(options: type[TlsOptions], given: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="give both or neither"):
        options(**given)


@pytest.mark.parametrize("address", ["", "nonsense", "http://a:1", "a:99999", "a:1,b"])
def test_an_address_of_a_control_plane_is_host_and_port(address: str) -> None:
    with pytest.raises(ValueError, match="--control-plane: "):
        LeaderOptions(control_plane=address)


def test_a_ca_makes_connections_to_the_leader_use_tls() -> None:
    assert LeaderOptions().client_settings().tls is None
    tls = LeaderOptions(tls_ca="/ca.pem", tls_server_name="name").client_settings().tls
    assert tls is not None
    assert tls.server_name == "name"
