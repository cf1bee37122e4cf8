"""Prints the SPIFFE Workload API as JSON, as the generated module of the first argument has it.

Run by two interpreters, for both of them register the same names.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterable

from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto


def describe(module: str) -> dict[str, object]:
    file = FileDescriptorProto.FromString(importlib.import_module(module).DESCRIPTOR.serialized_pb)
    return {"package": file.package, **dict(fields(file.message_type)), **dict(methods(file))}


def fields(messages: Iterable[DescriptorProto], outer: str = "") -> Iterable[tuple[str, object]]:
    for message in messages:
        name = f"{outer}{message.name}"
        yield name, sorted([each.number, each.name, each.type, each.label, each.type_name] for each in message.field)
        yield from fields(message.nested_type, f"{name}.")


def methods(file: FileDescriptorProto) -> Iterable[tuple[str, object]]:
    for service in file.service:
        for each in service.method:
            streams = [each.client_streaming, each.server_streaming]
            yield f"/{service.name}/{each.name}", [each.input_type, each.output_type, *streams]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(describe(sys.argv[1])))
