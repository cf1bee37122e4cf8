"""Prints Envoy's API as JSON, as the modules below one package have it: run by two interpreters, compared by a test.

    python describe_api.py citadel_py._proto     what this project generated
    python describe_api.py                       what the package xds-protos has
    python describe_api.py --read TYPE           reads a message from standard input, prints it as JSON

Both register the same names, so they cannot be loaded by one process.
"""

from __future__ import annotations

import importlib
import json
import sys

from google.protobuf import descriptor_pool, json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor, ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass

MODULES = (
    "envoy.config.core.v3.base_pb2",
    "envoy.config.core.v3.extension_pb2",
    "envoy.extensions.transport_sockets.tls.v3.common_pb2",
    "envoy.extensions.transport_sockets.tls.v3.secret_pb2",
    "envoy.extensions.transport_sockets.tls.v3.tls_spiffe_validator_config_pb2",
    "envoy.service.discovery.v3.ads_pb2",
    "envoy.service.discovery.v3.discovery_pb2",
    "envoy.service.secret.v3.sds_pb2",
    "envoy.type.matcher.v3.string_pb2",
)


def describe_field(field: FieldDescriptor) -> list[object]:
    kind = field.message_type or field.enum_type
    oneof = field.containing_oneof.name if field.containing_oneof else None
    return [field.number, field.type, field.is_repeated, kind.full_name if kind else None, oneof]


def describe_message(message: Descriptor) -> dict[str, object]:
    described: dict[str, object] = {
        f"{message.full_name}.{field.name}": describe_field(field) for field in message.fields
    }
    for enum in message.enum_types:
        described |= {f"{enum.full_name}.{value.name}": value.number for value in enum.values}
    for nested in message.nested_types:
        described |= describe_message(nested)
    return described


def describe_service(service: ServiceDescriptor) -> dict[str, object]:
    return {
        method.full_name: [
            method.input_type.full_name,
            method.output_type.full_name,
            method.client_streaming,
            method.server_streaming,
        ]
        for method in service.methods
    }


def describe(package: str) -> dict[str, object]:
    described: dict[str, object] = {}
    for name in MODULES:
        file = importlib.import_module(f"{package}.{name}" if package else name).DESCRIPTOR
        for message in file.message_types_by_name.values():
            described |= describe_message(message)
        for service in file.services_by_name.values():
            described |= describe_service(service)
    return described


def read(type_name: str) -> dict[str, object]:
    describe("")
    message = GetMessageClass(descriptor_pool.Default().FindMessageTypeByName(type_name))()
    message.ParseFromString(sys.stdin.buffer.read())
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    answer = read(arguments[1]) if arguments[:1] == ["--read"] else describe("".join(arguments))
    print(json.dumps(answer))  # noqa: T201 - its output is its purpose
