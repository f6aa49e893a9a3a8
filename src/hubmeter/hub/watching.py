"""
Limits for our requests, in a session of the client that is not ours.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, cast

from ..deadline import Deadline
from .client import inner, load, stream_class, transport, utils
from .failures import OVER, Failed, no_answer, refusal_of

LONGEST_REQUEST_S = 30.0
"""No request waits longer for one step: a connection, a read, a write."""


@dataclass(frozen=True, slots=True)
class _Watch:
    """What holds for the requests of a publication."""

    deadline: Deadline

    def limits(self) -> dict[str, float]:
        """Time limits in seconds for the steps of a request."""
        remaining = self.deadline.remaining_s()
        if not remaining:
            raise Failed(OVER)
        limit = min(LONGEST_REQUEST_S, remaining)
        return {"connect": limit, "read": limit, "write": limit, "pool": limit}


class _Watched(threading.local):
    """The watch over this thread."""

    watch: _Watch | None = None


_THIS_THREAD = _Watched()
_EVERY_THREAD: list[_Watch] = []


def _watch() -> _Watch | None:
    # The last one: those before it may be of attempts that were left behind.
    return _THIS_THREAD.watch or next(reversed(_EVERY_THREAD), None)


@contextmanager
def watching(deadline: Deadline, *, every_thread: bool) -> Iterator[None]:
    """Bound the requests of this thread, or of all, keep them out of logs and traces."""
    watch = _Watch(deadline)
    before, _THIS_THREAD.watch = _THIS_THREAD.watch, watch
    if every_thread:
        _EVERY_THREAD.append(watch)
    try:
        with _HOOKS, _untraced():
            _HOOKS.hook(utils().get_session())
            yield
    finally:
        _THIS_THREAD.watch = before
        if every_thread:
            _EVERY_THREAD.remove(watch)


def _on_request(request: Any) -> None:
    watch = _watch()
    if watch is None:
        return
    request.extensions = {
        **request.extensions,
        "timeout": watch.limits(),
        "trace": partial(_on_event, request.url.host),
    }
    request.stream = _bounded_stream()(request.stream, watch.deadline)


def _on_response(response: Any) -> None:
    watch = _watch()
    if watch is None:
        return
    response.request.extensions["timeout"].update(watch.limits())
    response.stream = _bounded_stream()(response.stream, watch.deadline)
    if response.status_code >= 400:
        response.read()
        # Raised here: the client would sleep as long as the answer says, and log its address.
        raise Failed(refusal_of(response))


def _on_event(host: str, event: str, info: Mapping[str, Any]) -> None:
    """
    Turn a failed step of a request into our failure.

    The client would ask again by itself, after pauses that know no deadline, and after a
    failed connection it closes the session, with all that the observed program has open.
    """
    error = info.get("exception")
    if not event.endswith(".failed") or not isinstance(error, Exception):
        return
    # After a failed write comes a read: a server may refuse before it has read all.
    if isinstance(error, Failed) or type(error).__name__ == "WriteError":
        return
    raise Failed(no_answer(host, error))


@cache
def _bounded_stream() -> Any:
    """The class of bodies that end with an error when the time is over."""

    class BoundedStream(transport().SyncByteStream):  # type: ignore[misc]
        def __init__(self, stream: Any, deadline: Deadline) -> None:
            self._stream = stream
            self._deadline = deadline

        def __iter__(self) -> Iterator[bytes]:
            for chunk in self._stream:
                # The client's limits are for one chunk, however many there are.
                if self._deadline.is_over():
                    raise Failed(OVER)
                yield chunk

        def close(self) -> None:
            self._stream.close()

    return BoundedStream


class _Hooks:
    """
    Our hooks in the client, while at least one thread publishes.

    A session can be replaced meanwhile, by the client or by the program; so what makes the
    next one is wrapped too. Nothing is closed, and no setting is changed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._sessions: list[Any] = []
        self._loggers: list[logging.Logger] = []
        self._swaps: list[_Swap] = []
        self._warning: Any = None

    def __enter__(self) -> None:
        load()
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._loggers = _loggers()
                for logger in self._loggers:
                    logger.addFilter(_is_to_be_logged)
                self._swaps = [
                    _Swap.of(inner("_http"), "_GLOBAL_CLIENT_FACTORY", self._hooking),
                    _Swap.of(inner("tqdm"), "are_progress_bars_disabled", _or_watched),
                    _Swap.of(stream_class(), "read", _in_time),
                    _Swap.of(stream_class(), "write", _in_time),
                ]
                # The client sends files in a way that httpx calls deprecated.
                warnings.filterwarnings("ignore", "Use 'content=", DeprecationWarning)
                self._warning = warnings.filters[0]

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                for swap in self._swaps:
                    swap.undo()
                for session in self._sessions:
                    _drop_hooks(session)
                self._sessions.clear()
                for logger in self._loggers:
                    logger.removeFilter(_is_to_be_logged)
                with suppress(ValueError):  # the program has put back older filters
                    cast("list[Any]", warnings.filters).remove(self._warning)

    def hook(self, session: Any) -> Any:
        """Watch the requests of *session* too."""
        if _on_request not in session.event_hooks["request"]:
            self._sessions.append(session)
            # New lists: another thread may be walking along the old ones.
            hooks = session.event_hooks
            hooks["request"] = [*hooks["request"], _on_request]
            hooks["response"] = [_on_response, *hooks["response"]]
        return session

    def _hooking(self, factory: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: self.hook(factory())


_HOOKS = _Hooks()


@dataclass(frozen=True, slots=True)
class _Swap:
    """A name of the client, or of what it uses, that stands for something else for a while."""

    owner: Any
    name: str
    before: Any
    instead: Any

    @classmethod
    def of(cls, owner: Any, name: str, wrapping: Callable[[Any], Any]) -> _Swap:
        """Put *wrapping* around what *name* stands for, if the client has it."""
        before = getattr(owner, name, None)
        instead = wrapping(before) if before else None
        if before:
            setattr(owner, name, instead)
        return cls(owner, name, before, instead)

    def undo(self) -> None:
        """Unless somebody else has set it in the meantime."""
        if self.before and getattr(self.owner, self.name, None) is self.instead:
            setattr(self.owner, self.name, self.before)


def _in_time(step: Callable[..., Any]) -> Callable[..., Any]:
    """*step* of a connection within what is left: a request is told its limits only once."""

    def bounded(*args: Any, **kwargs: Any) -> Any:
        watch = _watch()
        limit = {} if watch is None else {"timeout": watch.limits()["read"]}
        return step(*args, **{**kwargs, **limit})

    return bounded


def _or_watched(are_disabled: Callable[..., bool]) -> Callable[..., bool]:
    return lambda *args, **kwargs: _watch() is not None or are_disabled(*args, **kwargs)


def _drop_hooks(session: Any) -> None:
    for event, ours in (("request", _on_request), ("response", _on_response)):
        session.event_hooks[event] = [h for h in session.event_hooks[event] if h is not ours]


def _loggers() -> list[logging.Logger]:
    """Those of the client: a filter of a logger does not hold for the loggers below."""
    families = ("huggingface_hub", "httpx", "httpx2", "httpcore", "httpcore2")
    names = {*families, *logging.root.manager.loggerDict}
    return [logging.getLogger(name) for name in names if name.partition(".")[0] in families]


def _is_to_be_logged(_record: logging.LogRecord) -> bool:
    """Not our own requests: addresses are signed, and answers can repeat what was sent."""
    return _watch() is None


@contextmanager
def _untraced() -> Iterator[None]:
    """OpenTelemetry must not record the requests that publish its own metrics."""
    from opentelemetry import context

    keys = {"suppress_instrumentation", "suppress_http_instrumentation"} | {
        getattr(context, name)
        for name in ("_SUPPRESS_INSTRUMENTATION_KEY", "_SUPPRESS_HTTP_INSTRUMENTATION_KEY")
        if hasattr(context, name)
    }
    current = context.get_current()
    for key in keys:
        current = context.set_value(key, True, current)
    token = context.attach(current)
    try:
        yield
    finally:
        context.detach(token)
