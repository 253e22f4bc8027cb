"""host:port. Pure."""

from __future__ import annotations


def split_address(text: str) -> tuple[str, int]:
    """(host, port) of host:port or [IPv6]:port. ValueError for anything else; an empty host means all interfaces."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{text!r} is not an address: expected host:port")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{text!r} is not an address: write an IPv6 address as [address]:port")
    return host, int(port)


def of_all_families(host: str) -> str | None:
    """The host to give asyncio, which serves IPv6 alone on "::" where other servers serve IPv4 as well."""
    return None if host in ("", "::") else host
