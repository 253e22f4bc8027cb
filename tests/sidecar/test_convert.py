"""What the sidecar passes on of its engine."""

from __future__ import annotations

import msgspec
from agentserving.contract.channel import CallRecord, Load
from agentserving_sidecar.convert import call_report, load_message


def test_a_load_is_passed_on_field_by_field() -> None:
    values = range(1, 1 + len(Load.__struct_fields__))
    load = Load(*values)
    message = load_message(load)
    assert [getattr(message, name) for name in Load.__struct_fields__] == list(values)
    assert {field.name for field in message.DESCRIPTOR.fields} == set(Load.__struct_fields__)


def test_a_record_is_passed_on_with_its_boot() -> None:
    record = CallRecord(
        call_id="p.1.0", attempt=1, program_id="p", root_program_id="p", tenant="default", thread_id="",
        attained_service_us=5, service_us=7, outcome="completed",
    )  # fmt: skip
    told = call_report(msgspec.msgpack.decode(msgspec.msgpack.encode(record), type=CallRecord), "boot")
    assert (told.call_id, told.service_us, told.boot_id) == ("p.1.0", 7, "boot")
