"""
From the bytes of a request to an :class:`Answer`: decode, deliver. No network, no asyncio.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from ..batch import NO_TIME, PointBatch
from ..decode.otlp_json import JsonDecoder
from ..decode.otlp_proto import ProtoDecoder
from ..decode.spans import SpanDecoder
from ..errors import DecodeError, JournalError
from .answers import TAKEN, Answer, Form, Signal, Status, not_now
from .problems import Problems

MOST_REASONS = 5
"""That a sender hears, the most frequent ones."""

FREE_POINTS, POINT_BYTES = 10_000, 11
"""
A request may have so many points, or one for so many of its bytes: in protobuf a point that has a
time takes them. Without a time it is in no table, but it takes memory like others.
"""

RETRY_AFTER_S = 1.0
"""When a full disk may have room again. Senders have 10 s for all their tries by default."""


class Intake:
    """
    Takes requests of all signals. Thread safe, one at a time.

    Metrics and spans are delivered. Logs are taken and dropped, unread, which is said once.

    Args:
        deliver: Where batches go. What it returns from is acknowledged; ``JournalError``
            makes the sender come again.
    """

    def __init__(self, deliver: Callable[[PointBatch], None]) -> None:
        self.problems = Problems()
        self._deliver = deliver
        self._lock = threading.Lock()
        self._is_closed = self._has_logs = False
        spans = SpanDecoder()
        self._decoders: Mapping[tuple[Signal, Form], Callable[[bytes], PointBatch]] = {
            ("metrics", "protobuf"): ProtoDecoder().decode,
            ("metrics", "json"): JsonDecoder().decode_request,
            ("traces", "protobuf"): spans.decode_proto,
            ("traces", "json"): spans.decode_json,
        }

    def close(self) -> None:
        """Deliver nothing any more, also not what is being decoded."""
        self._is_closed = True

    def take(self, signal: Signal, form: Form, body: bytes) -> Answer:
        """What becomes of *body*. Never raises."""
        if signal == "logs":
            if not self._has_logs:
                self._has_logs = True
                self.problems.note("logs are taken and dropped, as rows have none")
            return TAKEN
        try:
            batch = self._delivered(signal, form, body)
        except DecodeError as error:
            return Answer(status=Status.BAD_DATA, message=str(error))
        except JournalError as error:
            self.problems.note("the journal takes nothing, senders come again", str(error))
            return not_now("the journal takes nothing at the moment", RETRY_AFTER_S)
        except Exception as error:
            # What no decoder foresaw must not stop the receiver, nor lose the request.
            name = type(error).__name__
            self.problems.note(f"{name} while taking {signal}, senders come again", error=error)
            return not_now(f"{name} while taking {signal}", RETRY_AFTER_S)
        if batch is None:
            return not_now("the receiver ends", RETRY_AFTER_S)
        unusable = _unusable(batch)
        answer = _taken(unusable)
        if unusable:
            self.problems.note(f"{signal} with parts that cannot be used", answer.message)
        return answer

    def _delivered(self, signal: Signal, form: Form, body: bytes) -> PointBatch | None:
        """What is in *body*; None if that is not delivered any more."""
        with self._lock:
            if self._is_closed:
                return None
            batch = self._decoders[signal, form](body)
            _check_points(len(batch.values), len(body))
            if self._is_closed:  # decoding may take longer than what was left
                return None
            if batch.values or batch.skipped:
                self._deliver(batch)
            return batch


def _check_points(points: int, body_bytes: int) -> None:
    if points > max(FREE_POINTS, body_bytes // POINT_BYTES):
        raise DecodeError(f"{points} points in {body_bytes} bytes: most of them have no time")


def _unusable(batch: PointBatch) -> Mapping[str, int]:
    """Reason to number of points that will be in no table."""
    untimed = batch.times_unix_nano.count(0)
    if not untimed:
        return batch.skipped
    points = untimed if len(batch.times_unix_nano) > 1 else len(batch.values)
    return {**batch.skipped, NO_TIME: points}


def _taken(skipped: Mapping[str, int]) -> Answer:
    """All of it, or without the points that were *skipped*."""
    if not skipped:
        return TAKEN
    reasons = sorted(skipped.items(), key=lambda reason: -reason[1])
    said = [f"{reason} ({count})" for reason, count in reasons[:MOST_REASONS]]
    return Answer(
        status=Status.OK, rejected=sum(skipped.values()), message="not used: " + ", ".join(said)
    )
