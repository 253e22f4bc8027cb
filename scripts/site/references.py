"""Reference pages that are made from sources: commands, Python client, gRPC services."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

ROOT = Path(__file__).parents[2]
PROTOS = ROOT / "proto" / "agentserving" / "v1"
COMMANDS = """# Commands

`agentserving` works on the cluster of this machine, or on the one that `--control-plane` names; `kubectl agentserving`
on a cluster of your kubectl context.

::: mkdocs-click
    :module: agentserving_cli.main
    :command: main
    :prog_name: agentserving
    :depth: 1
    :style: plain

::: mkdocs-click
    :module: agentserving_cli.kube.main
    :command: main
    :prog_name: kubectl-agentserving
    :depth: 1
    :style: plain
"""
_SCALARS = {number: name.removeprefix("TYPE_").lower() for name, number in FieldDescriptorProto.Type.items()}
# The comment of the n-th method, field or value.
Comment = Callable[[int], str]
# Numbers of fields in descriptor.proto, as paths of SourceCodeInfo use them.
_MESSAGE, _ENUM, _SERVICE, _PART = 4, 5, 6, 2


def commands() -> str:
    """Both commands with all options, by mkdocs-click."""
    return COMMANDS


def python() -> str:
    """Every public name of the client package, by mkdocstrings."""
    import agentserving

    names = [name for name in agentserving.__all__ if not name.startswith("_")]
    directives = "\n\n".join(f"::: {agentserving._HOME_OF[name]}.{name}" for name in names)
    return f"# Python client\n\n    import agentserving\n\n{directives}\n"


def grpc() -> str:
    """Services, messages and enums with the comments of the .proto files. CalledProcessError when they do not parse."""
    parts = ["# gRPC\n\nPackage `agentserving.v1`. Each error carries google.rpc.ErrorInfo with a reason.\n"]
    for file in _files():
        parts += _file(file)
    return "\n".join(parts)


def _files() -> list[FileDescriptorProto]:
    names = sorted(path.name for path in PROTOS.glob("*.proto"))
    with tempfile.NamedTemporaryFile() as out:
        subprocess.run(
            [
                "uv", "tool", "run", "--quiet", "--python", "3.11", "--from", "grpcio-tools==1.71.2",
                "--with", "setuptools<81", "python", "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}",
                "--include_source_info", f"--descriptor_set_out={out.name}",
                *(f"agentserving/v1/{name}" for name in names),
            ],
            check=True,
        )  # fmt: skip
        files = FileDescriptorSet.FromString(Path(out.name).read_bytes()).file
        return sorted(files, key=lambda file: (not file.service, file.name))


def _file(file: FileDescriptorProto) -> Iterator[str]:
    comments = {tuple(at.path): at.leading_comments or at.trailing_comments for at in file.source_code_info.location}

    def comment(*path: int) -> str:
        return re.sub(r"\s+", " ", comments.get(path, "")).strip().replace("|", "\\|")

    for number, service in enumerate(file.service):
        yield f"## {service.name}\n"
        yield comment(_SERVICE, number) + "\n"
        yield from _service(service, partial(comment, _SERVICE, number, _PART))
    for number, message in enumerate(file.message_type):
        yield f"### {message.name}\n"
        yield comment(_MESSAGE, number) + "\n"
        yield from _message(message, partial(comment, _MESSAGE, number, _PART))
    for number, enum in enumerate(file.enum_type):
        yield f"### {enum.name}\n"
        yield comment(_ENUM, number) + "\n"
        yield from _enum(enum, partial(comment, _ENUM, number, _PART))


def _service(service: ServiceDescriptorProto, comment: Comment) -> Iterator[str]:
    yield "| method | request | answer | |\n|---|---|---|---|"
    for number, method in enumerate(service.method):
        request = _stream(_link(method.input_type), method.client_streaming)
        response = _stream(_link(method.output_type), method.server_streaming)
        yield f"| **{method.name}** | {request} | {response} | {comment(number)} |"
    yield ""


def _message(message: DescriptorProto, comment: Comment) -> Iterator[str]:
    if not message.field:
        yield "No fields.\n"
        return
    yield "| field | number | type | |\n|---|---|---|---|"
    entries = {nested.name: nested for nested in message.nested_type if nested.options.map_entry}
    for number, field in enumerate(message.field):
        yield f"| **{field.name}** | {field.number} | {_type(field, entries)} | {comment(number)} |"
    yield ""


def _enum(enum: EnumDescriptorProto, comment: Comment) -> Iterator[str]:
    yield "| value | number | |\n|---|---|---|"
    for number, value in enumerate(enum.value):
        yield f"| **{value.name}** | {value.number} | {comment(number)} |"
    yield ""


def _type(field: FieldDescriptorProto, entries: dict[str, DescriptorProto]) -> str:
    entry = entries.get(field.type_name.rpartition(".")[2])
    if entry is not None:
        return f"map of {_plain(entry.field[0])} to {_plain(entry.field[1])}"
    return f"list of {_plain(field)}" if field.label == FieldDescriptorProto.LABEL_REPEATED else _plain(field)


def _plain(field: FieldDescriptorProto) -> str:
    return _link(field.type_name) if field.type_name else _SCALARS[field.type]


def _link(name: str) -> str:
    short = name.rpartition(".")[2]
    return f"[{short}](#{short.lower()})" if name.startswith(".agentserving.") else short


def _stream(name: str, streaming: bool) -> str:
    return f"stream of {name}" if streaming else name
