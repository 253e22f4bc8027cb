"""Policy values, tickets and frames: what components share."""

from __future__ import annotations

import importlib
from pathlib import Path

import msgspec
import pytest
from agentserving import v1
from agentserving.contract.accounting import account_at_admit, charge_call
from agentserving.contract.channel import AckCalls, FrameSplitter, frame, to_engine_decoder
from agentserving.contract.policy import PRESETS, Accounting, InvalidPolicyError, Level, Policy, from_dict, to_dict
from agentserving.contract.signatures import public_bytes, signing_key, verifying_key
from agentserving.contract.ticket import InvalidTicketError, IssuerKeys, Ticket, sign, sign_for_gateway, verify
from hypothesis import example, given
from hypothesis import strategies as st

KEY, OTHER, GATEWAY = (signing_key(letter * 32) for letter in (b"a", b"b", b"g"))
KEYS = IssuerKeys([KEY.public_key()], [GATEWAY.public_key()])
TICKET = Ticket(
    call_id="p.1.0", attempt=1, program_id="p", root_program_id="p", tenant="default", thread_id="", engine_id="e1",
    attained_service_us=5, wait_us=6, policy_version=1, epoch=1, expires_unix_s=1000,
)  # fmt: skip


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_survives_the_wire(name: str) -> None:
    assert from_dict(to_dict(PRESETS[name])) == PRESETS[name]


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"levels": (Level(5, 5), Level(5, 5), Level())}, "levels[1].upper_bound_us"),
        ({"levels": (Level(5, 0), Level())}, "levels[0].quantum_us"),
        ({"levels": (Level(5, 5),)}, "levels[0].upper_bound_us"),
        ({"levels": ()}, "levels"),
        ({"beta_milli": 999}, "beta_milli"),
        ({"decision_interval_steps": 0}, "decision_interval_steps"),
        ({"max_preemptions": -1}, "max_preemptions"),
        ({"unmanaged_level": 1}, "unmanaged_level"),
        ({"levels": (Level(rank=1001),)}, "levels[0].rank"),
        ({"classes": (("a", (Level(5, 5),)),)}, "classes[0].levels[0].upper_bound_us"),
        ({"classes": (("a", (Level(),)), ("a", (Level(),)))}, "classes[1].application"),
        ({"classes": (("a" * 129, (Level(),)),)}, "classes[0].application"),
        ({"classes": tuple((str(number), (Level(),)) for number in range(257))}, "classes"),
    ],
)
def test_a_policy_that_cannot_be_executed_names_its_field(values: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidPolicyError) as caught:
        Policy(**values)  # type: ignore[arg-type]
    assert caught.value.field == field


def test_a_ticket_is_read_back_by_its_engine() -> None:
    assert verify(sign(TICKET, KEY), KEYS, engine_id="e1", now_unix_s=999) == (TICKET, True)


def test_an_expired_ticket_says_for_how_long() -> None:
    with pytest.raises(InvalidTicketError) as caught:
        verify(sign(TICKET, KEY), KEYS, engine_id="e1", now_unix_s=1900.5)
    assert (caught.value.reason, caught.value.expired_for_s) == ("expired", 900.5)


def test_a_ticket_may_be_signed_by_any_of_the_keys() -> None:
    both = IssuerKeys([OTHER.public_key(), KEY.public_key()])
    for signing in (KEY, OTHER):
        assert verify(sign(TICKET, signing), both, engine_id="e1", now_unix_s=0).ticket == TICKET
    with pytest.raises(InvalidTicketError):
        verify(sign(TICKET, signing_key(b"a third secret 00")), both, engine_id="e1", now_unix_s=0)


def test_what_an_engine_knows_makes_no_ticket() -> None:
    public = public_bytes(b"a" * 32)
    assert verifying_key(public) == KEY.public_key()
    with pytest.raises(InvalidTicketError, match="forged"):
        verify(sign(TICKET, signing_key(public)), KEYS, engine_id="e1", now_unix_s=0)


def test_a_gateway_vouches_for_a_tenant_and_for_no_account() -> None:
    assert verify(sign_for_gateway(TICKET, GATEWAY), KEYS, engine_id="e1", now_unix_s=0) == (TICKET, False)
    for forged in (sign(TICKET, GATEWAY), sign_for_gateway(TICKET, KEY)):
        with pytest.raises(InvalidTicketError, match="forged"):
            verify(forged, KEYS, engine_id="e1", now_unix_s=0)


@pytest.mark.parametrize(
    ("text", "engine", "now", "reason"),
    [
        (sign(TICKET, OTHER), "e1", 0, "forged"),
        (sign(TICKET, KEY), "e2", 0, "wrong_engine"),
        (sign(TICKET, KEY), "e1", 1001, "expired"),
        ("", "e1", 0, "malformed"),
        ("ä" * 30, "e1", 0, "malformed"),
        ("A" * 5000, "e1", 0, "malformed"),
    ],
)
def test_a_bad_ticket_buys_nothing_and_says_why(text: str, engine: str, now: float, reason: str) -> None:
    with pytest.raises(InvalidTicketError) as caught:
        verify(text, KEYS, engine_id=engine, now_unix_s=now)
    assert caught.value.reason == reason


@given(st.text(max_size=200), st.integers(0, 200))
@example(text="=", at=10_000)
def test_no_text_makes_verify_raise_anything_else(text: str, at: int) -> None:
    good = sign(TICKET, KEY)
    for candidate in (text, good[:at] + text + good[at:]):
        if candidate != good:
            with pytest.raises(InvalidTicketError):
                verify(candidate, KEYS, engine_id="e1", now_unix_s=0)


@given(st.lists(st.integers(1, 50), max_size=10), st.integers(1, 7))
def test_frames_are_found_however_the_stream_is_cut(sizes: list[int], piece: int) -> None:
    messages = [AckCalls([("x" * size, 1)]) for size in sizes]
    stream = b"".join(frame(message) for message in messages)
    splitter = FrameSplitter()
    found = [body for at in range(0, len(stream), piece) for body in splitter.feed(stream[at : at + piece])]
    assert [to_engine_decoder.decode(body) for body in found] == messages


def test_parallel_calls_count_once_on_the_critical_path_and_twice_in_the_sum() -> None:
    path = total = 0
    for service in (5, 3):
        path = charge_call(Accounting.CRITICAL_PATH, path, 0, service)
        total = charge_call(Accounting.SUM, total, 0, service)
    assert (path, total) == (5, 8)
    assert account_at_admit(Accounting.NONE, 8) == 0


def test_a_ticket_is_good_on_each_engine_that_it_names_and_on_no_other() -> None:
    text = sign(msgspec.structs.replace(TICKET, engine_id="e1", fallbacks=("e2", "e3")), KEY)
    for engine_id in ("e1", "e2", "e3"):
        assert verify(text, KEYS, engine_id=engine_id, now_unix_s=0).ticket.engine_ids == ("e1", "e2", "e3")
    with pytest.raises(InvalidTicketError, match="wrong_engine"):
        verify(text, KEYS, engine_id="e4", now_unix_s=0)


def test_a_ticket_is_good_on_the_boots_that_it_names() -> None:
    text = sign(msgspec.structs.replace(TICKET, fallbacks=("e2", "e3"), boots=("b1", "b2")), KEY)
    for engine_id, boot_id in (("e1", "b1"), ("e2", "b2"), ("e3", "any"), ("e1", "")):
        assert verify(text, KEYS, engine_id=engine_id, now_unix_s=0, boot_id=boot_id).managed
    with pytest.raises(InvalidTicketError, match="wrong_boot"):
        verify(text, KEYS, engine_id="e2", now_unix_s=0, boot_id="b1")


def test_every_file_of_the_contract_names_one_go_package() -> None:
    files = sorted(Path(v1.__path__[0]).glob("*.proto"))
    modules = [importlib.import_module(f"agentserving.v1.{file.stem}_pb2") for file in files]
    assert len(modules) >= 8
    assert {module.DESCRIPTOR.GetOptions().go_package for module in modules} == {
        "agentserving.io/proto/agentserving/v1;agentservingv1"
    }
