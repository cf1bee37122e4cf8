from __future__ import annotations

from datetime import timedelta

import grpc
import pytest
from google.rpc import status_pb2  # type: ignore[import-untyped]  # ships .pyi files without py.typed
from hypothesis import given
from hypothesis import strategies as st

from citadel_py.obs.status import DETAILS_KEY, REQUEST_ID_KEY, Refusal, read_refusal

Code = grpc.StatusCode


def failed(code: grpc.StatusCode, message: str | None, *trailing: tuple[str, str | bytes]) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing), message)


def test_a_refusal_is_read_back_as_it_was_written() -> None:
    refusal = Refusal(Code.UNAVAILABLE, "later", "NOT_READY", "0a", ("one", "two"), timedelta(seconds=2.5))

    assert read_refusal(failed(Code.UNAVAILABLE, "later", (DETAILS_KEY, refusal.details()))) == refusal


def test_a_refusal_of_somebody_else_has_no_reason() -> None:
    error = failed(Code.UNAVAILABLE, "connection refused")

    assert read_refusal(error) == Refusal(Code.UNAVAILABLE, "connection refused", "")


def test_the_request_id_is_found_without_details() -> None:
    error = failed(Code.NOT_FOUND, None, (REQUEST_ID_KEY, "0a"))

    assert read_refusal(error) == Refusal(Code.NOT_FOUND, "", "", "0a")


def test_a_reason_from_another_domain_is_not_ours() -> None:
    details = Refusal(Code.INTERNAL, "x", "REASON").details().replace(b"citadel-py", b"else-where")

    assert read_refusal(failed(Code.INTERNAL, "x", (DETAILS_KEY, details))).reason == ""


@given(st.binary())
def test_details_of_any_content_are_read_or_passed_over(details: bytes) -> None:
    assert read_refusal(failed(Code.INTERNAL, "x", (DETAILS_KEY, details))).code is Code.INTERNAL


def test_a_detail_that_is_broken_is_passed_over() -> None:
    status = status_pb2.Status(code=13, message="x")
    status.details.add(type_url="type.googleapis.com/google.rpc.RetryInfo", value=b"\xff")

    error = failed(Code.INTERNAL, "x", (DETAILS_KEY, status.SerializeToString()))

    assert read_refusal(error) == Refusal(Code.INTERNAL, "x", "")


@pytest.mark.parametrize("value", ["text", b""])
def test_details_of_the_wrong_kind_are_passed_over(value: str | bytes) -> None:
    assert read_refusal(failed(Code.INTERNAL, "x", (DETAILS_KEY, value))) == Refusal(Code.INTERNAL, "x", "")
