"""Envoy's external processing messages from and to values. The only module that reads and writes them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from agentserving_gateway.envoy import names
from agentserving_gateway.errors import HttpError, envelope
from agentserving_gateway.ext_proc import envoy_ext_proc_pb2 as pb
from agentserving_gateway.picker import Head, Pick
from agentserving_gateway.routes import Kind, Route, route_under, split_program

METADATA, SUBSET_METADATA = "envoy.lb", "envoy.lb.subset_hint"
SUBSET = "x-gateway-destination-endpoint-subset"
SERVED = "x-gateway-destination-endpoint-served"
_OVERWRITE = pb.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
# Gateways reject mutations of their own x-envoy- headers; the others are removed, or set below.
_UNTRUSTED = tuple(name for name in names.RESERVED if not name.startswith("x-envoy-"))


class BodyMode(Enum):
    """What a gateway sends of a body, and what it expects back."""

    NONE = pb.NONE
    # Each chunk is acknowledged; heads cannot be changed any more.
    STREAMED = pb.STREAMED
    # The whole body, or its beginning, before the head goes on: the head may be changed with it.
    BUFFERED = pb.BUFFERED
    BUFFERED_PARTIAL = pb.BUFFERED_PARTIAL
    # The body goes on as the picker sends it back, and the head waits until the picker answers it.
    FULL_DUPLEX = pb.FULL_DUPLEX_STREAMED


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """The first message of a stream. `bodiless`: the request consists of its head."""

    head: Head
    bodiless: bool
    request_body: BodyMode
    response_body: BodyMode


def opening_of(message: pb.ProcessingRequest) -> Opening:
    """ValueError for a message that does not open a stream."""
    if message.WhichOneof("request") != "request_headers":
        raise ValueError("the stream does not begin with the head of a request")
    headers = headers_of(message.request_headers)
    program, path = split_program(headers.get(":path", "").partition("?")[0])
    method = headers.get(":method", "POST")
    length = headers.get("content-length", "")
    head = Head(
        route=route_under(method, path) or Route(kind=Kind.READ, methods=(method,), path="", shown="other"),
        path=path,
        program=program,
        headers=headers,
        length=int(length) if length.isdigit() else 0,
        among=_subset(message),
    )
    # The protocol asks for FULL_DUPLEX_STREAMED; gateways that are no Envoy do not repeat it.
    given = message.protocol_config if message.HasField("protocol_config") else None
    return Opening(
        head=head,
        bodiless=message.request_headers.end_of_stream,
        request_body=BodyMode(given.request_body_mode) if given else BodyMode.FULL_DUPLEX,
        response_body=BodyMode(given.response_body_mode) if given else BodyMode.FULL_DUPLEX,
    )


def headers_of(message: pb.HttpHeaders) -> dict[str, str]:
    """Headers by their names in lower case. Values are UTF-8 or Latin-1; the first of equals wins."""
    found: dict[str, str] = {}
    for header in message.headers.headers:
        found.setdefault(header.key.lower(), _text(header))
    return found


def _text(header: pb.HeaderValue) -> str:
    if not header.raw_value:
        return header.value
    try:
        return header.raw_value.decode()
    except UnicodeDecodeError:
        return header.raw_value.decode("latin-1")


def status_of(headers: Mapping[str, str]) -> int:
    """The status in the head of an answer; 0 when there is none."""
    status = headers.get(":status", "")
    return int(status) if status.isdigit() else 0


def served_by(message: pb.ProcessingRequest) -> str:
    """Address of the engine that answered; empty when the gateway does not report it."""
    fields = message.metadata_context.filter_metadata
    return str(fields[METADATA].fields[SERVED].string_value) if METADATA in fields else ""


def _subset(message: pb.ProcessingRequest) -> frozenset[str] | None:
    """The endpoints that may be chosen: a list, or a text with commas (of gateways that copy it from a header)."""
    metadata = message.metadata_context.filter_metadata
    if SUBSET_METADATA not in metadata or SUBSET not in metadata[SUBSET_METADATA].fields:
        return None
    value = metadata[SUBSET_METADATA].fields[SUBSET]
    texts = [each.string_value for each in value.list_value.values] or [value.string_value]
    return frozenset(one.strip() for text in texts for one in text.split(",") if one.strip())


# -- responses -----------------------------------------------------------------------------------------------------


def chosen(pick: Pick, *, in_body: bool) -> pb.ProcessingResponse:
    """The engines for a request, in its headers and in the metadata; `in_body`: in response to its buffered body."""
    addresses = ",".join(pick.addresses)
    setting = {names.ENDPOINTS: addresses}
    if pick.tenant:
        setting[names.TENANT] = pick.tenant
    if pick.credential:
        setting[names.CREDENTIAL] = pick.credential
    if pick.program_id:
        setting[names.PROGRAM_ID] = pick.program_id
    if pick.call_id:
        setting |= {names.CALL_ID: pick.call_id, names.REQUEST_ID: pick.call_id}
    if pick.ticket:
        setting[names.TICKET] = pick.ticket
    kept = {names.REQUEST_ID, *setting}
    common = pb.CommonResponse(
        header_mutation=pb.HeaderMutation(
            set_headers=_headers(setting),
            remove_headers=[name for name in (*_UNTRUSTED, *pick.removed_headers) if name not in kept],
        ),
        clear_route_cache=True,
    )
    if in_body:
        response = pb.ProcessingResponse(request_body=pb.BodyResponse(response=common))
    else:
        response = pb.ProcessingResponse(request_headers=pb.HeadersResponse(response=common))
    response.dynamic_metadata.update({METADATA: {names.ENDPOINTS: addresses}})
    return response


def refused(error: HttpError, path: str) -> pb.ProcessingResponse:
    """The answer to the client, in the dialect of its path."""
    return pb.ProcessingResponse(
        immediate_response=pb.ImmediateResponse(
            status=pb.ImmediateResponse.Status(code=error.status),
            headers=pb.HeaderMutation(set_headers=_headers(error.headers)),
            body=json.dumps(envelope(error, path)).encode(),
            details="agentserving_refused",
        )
    )


def answered(headers: Mapping[str, str]) -> pb.ProcessingResponse:
    """Passes the head of an answer on, with these headers."""
    mutation = pb.HeaderMutation(set_headers=_headers(headers))
    return pb.ProcessingResponse(
        response_headers=pb.HeadersResponse(response=pb.CommonResponse(header_mutation=mutation))
    )


def _headers(values: Mapping[str, str]) -> Iterable[pb.HeaderValueOption]:
    return [
        pb.HeaderValueOption(header=pb.HeaderValue(key=name, raw_value=value.encode()), append_action=_OVERWRITE)
        for name, value in values.items()
    ]


HEAD_GOES_ON = pb.ProcessingResponse(request_headers=pb.HeadersResponse())
_REQUEST_BODY_GOES_ON = pb.ProcessingResponse(request_body=pb.BodyResponse())
_RESPONSE_BODY_GOES_ON = pb.ProcessingResponse(response_body=pb.BodyResponse())
_REQUEST_TRAILERS_GO_ON = pb.ProcessingResponse(request_trailers=pb.TrailersResponse())
_RESPONSE_TRAILERS_GO_ON = pb.ProcessingResponse(response_trailers=pb.TrailersResponse())


def passed_on(message: pb.ProcessingRequest, mode: BodyMode) -> pb.ProcessingResponse:
    """Passes a piece of a body, or trailers, on as they are."""
    kind = message.WhichOneof("request")
    if kind == "request_trailers":
        return _REQUEST_TRAILERS_GO_ON
    if kind == "response_trailers":
        return _RESPONSE_TRAILERS_GO_ON
    is_request = kind == "request_body"
    if mode is not BodyMode.FULL_DUPLEX:
        return _REQUEST_BODY_GOES_ON if is_request else _RESPONSE_BODY_GOES_ON
    piece = message.request_body if is_request else message.response_body
    same = pb.StreamedBodyResponse(body=piece.body, end_of_stream=piece.end_of_stream)
    body = pb.BodyResponse(response=pb.CommonResponse(body_mutation=pb.BodyMutation(streamed_response=same)))
    return pb.ProcessingResponse(request_body=body) if is_request else pb.ProcessingResponse(response_body=body)
