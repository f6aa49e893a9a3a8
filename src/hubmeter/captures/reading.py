"""Captured records to batches of points."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias

from ..batch import PointBatch, SeriesLayout
from ..decode.otlp_json import BAD_LINE, JsonDecoder
from ..decode.otlp_json import _parsed as parsed
from ..errors import DecodeError
from .forms import HEAD, Form, form_of, likely_form
from .framing import Line, are_whole, lines, messages, pieces_of
from .unpacking import CUT_OFF, DAMAGED, GAP, MOST_BYTES, ZSTD, unpacked, unpacked_record
from .window import HOLE, Window
from .wire import signal_of

if TYPE_CHECKING:
    from ..decode.otlp_proto import ProtoDecoder
    from ..decode.spans import SpanDecoder

Source: TypeAlias = Path | bytes | IO[bytes]
"""A file by its path, what was in it, or an open binary file, which may be a pipe."""

BROKEN = "a record is damaged"
BROKEN_DOCUMENT = "the JSON document is cut off or damaged"
TOO_LARGE = f"a record is larger than {MOST_BYTES >> 20} MiB"

_CHUNK = 2**18
_PASSED_OVER = {"resourceLogs": "logs", "resourceProfiles": "profiles"}
_LOSSES = {"record": BROKEN, "stretch": DAMAGED, "end": CUT_OFF}


def nobody(_: bytes) -> None:
    """Watches nothing."""


class CaptureReader:
    """
    Reads captures, and keeps its decoders so that all share their layouts. Not thread safe.

    Args:
        watch: Is shown all bytes as they are read, in order: for progress, or a digest.

    Attributes:
        passed_over: Which records held no metrics and no spans, and how many: "logs".
    """

    def __init__(self, watch: Callable[[bytes], object] = nobody) -> None:
        self.passed_over: Counter[str] = Counter()
        self._watch = watch
        self._json = JsonDecoder()
        self._lost: Counter[str] = Counter()
        self._cuts = 0  # of compressed files, for which no record was counted yet

    @cached_property
    def _proto(self) -> ProtoDecoder:
        from ..decode.otlp_proto import ProtoDecoder

        return ProtoDecoder()

    @cached_property
    def _spans(self) -> SpanDecoder:
        from ..decode.spans import SpanDecoder

        return SpanDecoder()

    def read(self, sources: Iterable[Source]) -> Iterator[PointBatch]:
        """
        The points of *sources*, one after the other, and what was lost as counts.

        A record that a rotation split over two of them is joined.

        Raises:
            OSError: A source cannot be read.
        """
        files = (self._opened(source) for source in sources)
        file = next(files, None)
        while file is not None:
            stretch = _Stretch(file, files)
            yield from self._batches(stretch.form, stretch.window)
            yield from self._losses()
            file = stretch.following

    def decode(self, document: Any) -> Iterator[PointBatch]:
        """The points of decoded JSON: metrics, or spans."""
        if isinstance(document, Mapping) and "resourceMetrics" not in document:
            if "resourceSpans" in document:
                yield self._spans.decode_object(document)
                return
            for key in _PASSED_OVER.keys() & document.keys():
                self.passed_over[_PASSED_OVER[key]] += 1
                return
        yield from self._json.decode_document(document)

    def _opened(self, source: Source) -> _File:
        raw = self._raw(source)
        window = Window(unpacked(raw, self._noting()))
        window.fill(HEAD)
        form = form_of(window.data)
        return _File(form, form or likely_form(window.data), _then_all(window.rest(), raw))

    def _raw(self, source: Source) -> Iterator[bytes]:
        for chunk in _chunks(source):
            self._watch(chunk)
            yield chunk

    def _noting(self) -> Callable[[str], None]:
        """What notes losses of the compression of one file, its cut only once."""
        noted = set[str]()

        def note(reason: str) -> None:
            if reason != CUT_OFF or reason not in noted:
                self._lost[reason] += 1
                self._cuts += reason == CUT_OFF
            noted.add(reason)

        return note

    def _losses(self) -> Iterator[PointBatch]:
        """What was noted as lost since the last call."""
        self._cuts = 0
        if self._lost:
            nothing = SeriesLayout(())
            yield PointBatch(
                layout=nothing, times_unix_nano=(), values=(), skipped=dict(self._lost)
            )
            self._lost.clear()

    def _batches(self, form: Form, window: Window) -> Iterator[PointBatch]:
        match form:
            case Form.MESSAGES:
                yield from self._messages(window)
            case Form.MESSAGE:
                yield from self._message(_whole(window.rest()))
            case Form.DOCUMENT:
                yield from self._document(_whole(window.rest()))
            case Form.LINES:
                yield from self._lines(window.rest())

    def _messages(self, window: Window) -> Iterator[PointBatch]:
        for found in messages(window, self._record):
            if isinstance(found, str):
                self._lose(_LOSSES[found])
            else:
                yield from found

    def _message(self, body: bytes) -> Iterator[PointBatch]:
        is_too_large = len(body) > MOST_BYTES
        found = None if is_too_large else self._record(body)
        if found is None:
            self._lose(TOO_LARGE if is_too_large else CUT_OFF)
        yield from found or ()

    def _document(self, body: bytes) -> Iterator[PointBatch]:
        """A document of many lines; what is none may still have lines that are."""
        found = self._text(body)
        if found is None:
            before = self._lost.copy()
            found = list(self._lines(iter([body])))
            if not any(batch.values for batch in found):
                found, self._lost = [], before
                self._lose(BROKEN_DOCUMENT)
        yield from found

    def _lines(self, chunks: Iterator[bytes]) -> Iterator[PointBatch]:
        for line in lines(chunks):
            if line.content and not line.content.isspace():
                found = self._text(line.content)
                yield from self._salvaged(line) if found is None else found

    def _salvaged(self, line: Line) -> Iterator[PointBatch]:
        """What is whole in a line that is no JSON."""
        if len(line.content) > MOST_BYTES:
            self._lose(TOO_LARGE)
            return
        pieces = pieces_of(line)
        for piece in pieces:
            found = self._text(piece) if len(pieces) > 1 else None
            if found is None:
                is_last = piece is pieces[-1] and not line.is_ended
                is_cut_off = is_last and piece.lstrip().startswith((b"{", b"["))
                self._lose(CUT_OFF if is_cut_off else BAD_LINE)
            yield from found or ()

    def _lose(self, reason: str) -> None:
        """Count it, unless it is the record that was cut off with the compression."""
        if reason == CUT_OFF and self._cuts:
            self._cuts -= 1
        else:
            self._lost[reason] += 1

    def _record(self, body: bytes) -> list[PointBatch] | None:
        """A message of any kind; None if it is none."""
        try:
            plain = unpacked_record(body) if body.startswith(ZSTD) else body
            if plain.startswith((b"{", b"[")):
                return self._text(plain)
            return self._request(plain)
        except ValueError:  # also DecodeError
            return None

    def _request(self, body: bytes) -> list[PointBatch]:
        signal = signal_of(body)
        if signal == "metrics":
            return [self._proto.decode(body)]
        if signal == "traces":
            return [self._spans.decode_proto(body)]
        self.passed_over[signal] += 1
        return []

    def _text(self, text: bytes) -> list[PointBatch] | None:
        """A JSON document, or an array of such; None if it is none."""
        if len(text) > MOST_BYTES:
            return None
        try:
            document = parsed(text)
        except (ValueError, RecursionError):
            return None
        items = document if isinstance(document, list) else [document]
        return [batch for item in items for batch in self.decode(item)]


@dataclass(frozen=True, slots=True)
class _File:
    """
    Attributes:
        form: If its first bytes tell.
        likely_form: What it is otherwise.
    """

    form: Form | None
    likely_form: Form
    chunks: Iterator[bytes]


class _Stretch:
    """
    Files in which the records go on from one to the next.

    Attributes:
        window: All that is in them.
        following: The file after the stretch, once *window* was read to its end.
    """

    def __init__(self, first: _File, others: Iterator[_File]) -> None:
        self.form = first.likely_form
        self.following: _File | None = first
        self.window = Window(self._chunks())
        self._others = others

    def _chunks(self) -> Iterator[bytes]:
        while self.following is not None:
            yield from self.following.chunks
            self.following = next(self._others, None)
            if self.following is None or not self._goes_on_in(self.following):
                return
            yield GAP

    def _goes_on_in(self, file: _File) -> bool:
        """Whether *file* begins with the rest of a record, or with another line."""
        if self.form is Form.LINES:
            return file.form in (Form.LINES, None)
        if self.form is Form.MESSAGES:
            is_torn = not are_whole(self.window.data)
            return file.form is None or (file.form is Form.MESSAGE and is_torn)
        return False


def _chunks(source: Source) -> Iterator[bytes]:
    if isinstance(source, bytes | bytearray | memoryview):
        yield from (bytes(source[at : at + _CHUNK]) for at in range(0, len(source), _CHUNK))
    elif isinstance(source, Path):
        with source.open("rb", buffering=0) as file:
            yield from _chunks(file)
    else:
        read = getattr(source, "read1", source.read)  # what a pipe has now, not when it is full
        while chunk := read(_CHUNK):
            if not isinstance(chunk, bytes):
                raise DecodeError("the file is open as text: open it in binary mode")
            yield chunk


def _then_all(chunks: Iterator[bytes], raw: Iterator[bytes]) -> Iterator[bytes]:
    """*chunks*, and *raw* to its end: who watches sees all bytes, also those of no use."""
    yield from chunks
    for _ in raw:
        pass


def _whole(chunks: Iterator[bytes]) -> bytes:
    """All *chunks*, but not much more than one record may be; a hole in it is a zero byte."""
    body, is_at_hole = bytearray(), False
    for chunk in chunks:
        if len(body) <= MOST_BYTES:
            body += b"\0" + chunk if chunk and is_at_hole else chunk
        is_at_hole = chunk is HOLE or (is_at_hole and not chunk)
    return bytes(body)
