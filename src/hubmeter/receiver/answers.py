"""
What a receiver says to a sender, and how HTTP and gRPC say it. No network.

OTLP 1.x, "OTLP/HTTP Response" and "OTLP/gRPC Response". A sender repeats what is answered with
429 or 503, and drops what is answered with another error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, NamedTuple, TypeAlias

from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status as RpcStatus
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from ..text import printable

Signal: TypeAlias = Literal["metrics", "traces", "logs"]
Form: TypeAlias = Literal["protobuf", "json"]

MEDIA_TYPES: Mapping[str, Form] = {
    "application/x-protobuf": "protobuf",
    "application/json": "json",
}
_MEDIA_TYPE_OF: Mapping[Form, str] = {form: name for name, form in MEDIA_TYPES.items()}

_RESPONSES: Mapping[Signal, tuple[Any, str, str]] = {
    "metrics": (ExportMetricsServiceResponse, "rejected_data_points", "rejectedDataPoints"),
    "traces": (ExportTraceServiceResponse, "rejected_spans", "rejectedSpans"),
    "logs": (ExportLogsServiceResponse, "rejected_log_records", "rejectedLogRecords"),
}

LONGEST_MESSAGE = 500
"""Characters; a message goes into headers of gRPC and logs of senders."""

DETAILS = "grpc-status-details-bin"


class Status(Enum):
    """Kinds of answers: the HTTP status and the gRPC code."""

    OK = (200, 0)
    BAD_DATA = (400, 3)
    UNAUTHENTICATED = (401, 16)
    NOT_FOUND = (404, 5)
    BAD_METHOD = (405, 12)
    TOO_SLOW = (503, 4)  # with 408 a sender would not come again
    TOO_LARGE = (413, 8)
    UNSUPPORTED = (415, 3)
    BUSY = (429, 8)
    UNAVAILABLE = (503, 14)

    @property
    def http(self) -> int:
        return self.value[0]

    @property
    def grpc(self) -> int:
        return self.value[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """
    What became of a request.

    Attributes:
        message: For a person on the other side; nothing of the request in it unless escaped.
        rejected: Points, or spans, that could not be used, of a request that was taken.
        retry_after_s: When the same request may succeed; None for never.
    """

    status: Status
    message: str = ""
    rejected: int = 0
    retry_after_s: float | None = None


TAKEN = Answer(status=Status.OK)


def not_now(message: str, retry_after_s: float = 1.0) -> Answer:
    """The sender keeps its request and repeats it."""
    return Answer(status=Status.UNAVAILABLE, message=message, retry_after_s=retry_after_s)


class Reply(NamedTuple):
    """An HTTP response."""

    status: int
    headers: dict[str, str]
    body: bytes


class Refused(Exception):
    """A request that does not come as far as its data; *headers* go with the answer."""

    def __init__(
        self,
        status: Status,
        message: str,
        *,
        retry_after_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.answer = Answer(status=status, message=message, retry_after_s=retry_after_s)
        self.headers = headers or {}


def http_reply(answer: Answer, signal: Signal | None = None, form: Form | None = None) -> Reply:
    """
    *answer* in the request's form; as plain text where that is not known.
    """
    if answer.status is Status.OK and signal is not None and form is not None:
        body = export_response(answer, signal, form)
    elif form is None:
        body = f"{_message(answer)}\n".encode()
    elif form == "json":
        body = _json({"code": answer.status.grpc, "message": _message(answer)})
    else:
        body = RpcStatus(code=answer.status.grpc, message=_message(answer)).SerializeToString()
    headers = {"Content-Type": _MEDIA_TYPE_OF[form] if form else "text/plain; charset=utf-8"}
    if answer.retry_after_s is not None:
        headers["Retry-After"] = str(math.ceil(answer.retry_after_s))
    return Reply(answer.status.http, headers, body)


def export_response(answer: Answer, signal: Signal, form: Form = "protobuf") -> bytes:
    """
    ``ExportXServiceResponse``. If all went well, ``partial_success`` is unset, as it has to be.
    """
    if not (answer.rejected or answer.message):
        return b"{}" if form == "json" else b""
    response, field_name, json_name = _RESPONSES[signal]
    if form == "json":
        said = {json_name: str(answer.rejected), "errorMessage": _message(answer)}
        return _json({"partialSuccess": said})
    partial = {field_name: answer.rejected, "error_message": _message(answer)}
    message: bytes = response(partial_success=partial).SerializeToString()
    return message


def grpc_details(answer: Answer) -> tuple[tuple[str, bytes], ...]:
    """Trailing metadata: ``google.rpc.Status``, with ``RetryInfo`` if repeating makes sense."""
    status = RpcStatus(code=answer.status.grpc, message=_message(answer))
    if answer.retry_after_s is not None:
        info = RetryInfo()
        info.retry_delay.FromNanoseconds(round(answer.retry_after_s * 1e9))
        packed = AnyMessage()
        packed.Pack(info)
        status.details.append(packed)
    return ((DETAILS, status.SerializeToString()),)


def _message(answer: Answer) -> str:
    return printable(answer.message)[:LONGEST_MESSAGE]


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value).encode()
