"""Grants: signed with the key of a gateway, and of no use for anything else."""

from __future__ import annotations

import pytest
from agentserving.contract.grant import Grant, GrantRefusedError, sign, verify
from agentserving.contract.signatures import signing_key
from agentserving.contract.ticket import InvalidTicketError, IssuerKeys
from agentserving.contract.ticket import verify as verify_ticket
from hypothesis import given
from hypothesis import strategies as st

KEY, OTHER = signing_key(b"0123456789abcdef"), signing_key(b"fedcba9876543210")
PUBLIC = [OTHER.public_key(), KEY.public_key()]
GRANT = Grant(tenant="blue", credential="abcdefgh", expires_unix_s=100, may_call=True)


def test_a_grant_is_what_was_signed_until_it_expires() -> None:
    text = sign(GRANT, KEY)
    assert verify(text, PUBLIC, 100) == GRANT
    with pytest.raises(GrantRefusedError, match="expired 5 s ago"):
        verify(text, PUBLIC, 105)
    with pytest.raises(GrantRefusedError, match="not a gateway's"):
        verify(text, PUBLIC[:1], 0)


def test_a_grant_is_no_ticket() -> None:
    with pytest.raises(InvalidTicketError):
        verify_ticket(sign(GRANT, KEY).removeprefix("asg_"), IssuerKeys(PUBLIC, PUBLIC), engine_id="e", now_unix_s=0)


@given(st.text(), st.integers(0, 200), st.integers(0, 255))
def test_any_other_text_is_refused(text: str, at: int, byte: int) -> None:
    good = sign(GRANT, KEY)
    changed = good[: at % len(good)] + chr(byte) + good[at % len(good) + 1 :]
    for each in (text, "asg_" + text, changed):
        try:
            assert verify(each, PUBLIC, 0) == GRANT
        except GrantRefusedError:
            continue
        # The last character has bits that mean nothing.
        assert each[:-1] == good[:-1]
