"""
A command as our child: it has our streams and terminal, gets our signals, and we end as it did.

Nothing here knows of metrics. Needs ``sigtimedwait``, which Linux and the BSDs have: a handler
in Python would not learn whether the terminal sent a signal, and then the child has it too.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn

from .deadline import Deadline

END_SIGNALS = frozenset({signal.SIGTERM, signal.SIGHUP})
"""Who sends them will not wait for long."""

STOP_AND_GO = frozenset({signal.SIGTSTP, signal.SIGCONT})

NOT_OURS = frozenset(
    getattr(signal, name)
    for name in (
        *("SIGKILL", "SIGSTOP"),  # nobody can hold them back
        *("SIGCHLD", "SIGURG", "SIGWINCH"),  # they end nobody
        *("SIGTTIN", "SIGTTOU"),  # stop us as they stop the child
        *("SIGPIPE", "SIGXFSZ"),  # for who writes
        *("SIGILL", "SIGTRAP", "SIGBUS", "SIGFPE", "SIGSEGV", "SIGSYS"),  # our own faults
    )
)

PASSED_ON = frozenset(signal.valid_signals()) - NOT_OURS
"""All others: each would end us, and leave the child alone."""

SET_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)
"""The interpreter ignores them, which a command would inherit."""

FROM_THE_KERNEL = 0x80
"""``SI_KERNEL``: of the terminal, or of a timer."""

TYPED = frozenset({signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP})
"""The terminal sends them to all processes in its foreground."""

HUNG_UP = frozenset({signal.SIGHUP, signal.SIGCONT})
"""Likewise, but first to the leader of its session alone: the others when that has ended."""

LONGEST_WAIT_S = 3600.0

SHELL = "/bin/sh"


def replace_this_process(command: tuple[str, ...], environment: Mapping[str, str]) -> NoReturn:
    """
    Become *command*, with *environment* as all of its variables.

    Raises:
        OSError: It cannot be started.
    """
    for number in SET_BY_PYTHON:
        signal.signal(number, signal.SIG_DFL)
    try:
        # With its own search it would go on where PATH has another program of that name.
        os.execvpe(_place(command, environment), command, environment)  # noqa: S606
    except OSError as error:
        script = _as_script(command, environment, error)
    os.execve(SHELL, script, environment)  # noqa: S606


def _as_script(
    command: tuple[str, ...], environment: Mapping[str, str], refusal: OSError
) -> tuple[str, ...]:
    """What shells do with a file that has no ``#!``, if that was why the kernel refused it."""
    if refusal.errno != errno.ENOEXEC:
        raise refusal
    return (SHELL, _place(command, environment), *command[1:])


def _place(command: tuple[str, ...], environment: Mapping[str, str]) -> str:
    return shutil.which(command[0], path=environment.get("PATH")) or command[0]


class HeldSignals:
    """
    Signals that wait for :class:`Child` instead of ending us; what was ignored stays ignored.

    To be made in the main thread before there are others: each thread inherits this.

    Attributes:
        numbers: Those that are passed on.
        before: What was blocked until now, and is for the child.
    """

    def __init__(self) -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if it were ignored, nobody could wait
        ignored = {number for number in PASSED_ON if signal.getsignal(number) is signal.SIG_IGN}
        self.numbers = PASSED_ON - ignored
        held = self.numbers | {signal.SIGCHLD}
        self.before = signal.pthread_sigmask(signal.SIG_BLOCK, held)

    def end_if_asked(self) -> None:
        """End by a signal that has come until now: no command is there yet to decide on it."""
        for number in signal.sigpending() & (self.numbers - STOP_AND_GO):
            end_like(number)

    def release(self) -> None:
        """From now on Ctrl-C is a KeyboardInterrupt, and what else would end us is too late."""
        for number in self.numbers - STOP_AND_GO:
            handler = signal.default_int_handler if number == signal.SIGINT else _nothing
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, self.before)


def _nothing(*_: Any) -> None:
    """Not SIG_IGN, which a process that we start would inherit."""


class Child:
    """
    A command that runs, with our working folder, descriptors and process group.

    Args:
        command: Program, searched for in PATH, and its arguments.
        environment: All of its variables.
        signals: Held back for it.

    Raises:
        OSError: It cannot be started.
    """

    def __init__(
        self, command: tuple[str, ...], environment: Mapping[str, str], signals: HeldSignals
    ) -> None:
        self._signals = signals
        self._asked_to_end_s: float | None = None
        # No fork: there are threads, and a fork would copy whatever locks they hold.
        spawn = partial(os.posix_spawnp, setsigmask=signals.before, setsigdef=SET_BY_PYTHON)
        try:
            self._pid = spawn(command[0], command, environment)
        except OSError as error:
            script = _as_script(command, environment, error)
            self._pid = spawn(SHELL, script, environment)

    def asked_to_end_for_s(self) -> float | None:
        """How long ago somebody first asked for an end by SIGTERM or SIGHUP, if anybody did."""
        asked_s = self._asked_to_end_s
        return None if asked_s is None else time.monotonic() - asked_s

    def wait(self, *, patience_s: float, out_of_patience: Callable[[], None]) -> int:
        """
        Pass signals on until it has ended.

        Args:
            patience_s: How long it may go on after it was asked to end.
            out_of_patience: Called once if it does go on.

        Returns:
            Its wait status.
        """
        expected = self._signals.numbers | {signal.SIGCHLD}
        due = Deadline(math.inf)
        while (status := self._ended()) is None:
            received = signal.sigtimedwait(expected, min(LONGEST_WAIT_S, due.remaining_s()))
            if received is None and due.is_over():
                due = Deadline(math.inf)
                out_of_patience()
            elif received is not None and received.si_signo != signal.SIGCHLD:
                if received.si_signo in END_SIGNALS and self._asked_to_end_s is None:
                    self._asked_to_end_s = time.monotonic()
                    due = Deadline.after(patience_s)
                self._pass_on(received)
        return status

    def _ended(self) -> int | None:
        """Its status. Process 1 has other children too: all whose parents ended."""
        whose = -1 if os.getpid() == 1 else self._pid
        while True:
            pid, status = os.waitpid(whose, os.WNOHANG)
            if pid in {0, self._pid}:
                return status if pid else None

    def _pass_on(self, received: signal.struct_siginfo) -> None:
        if not _is_for_both(received):
            os.kill(self._pid, received.si_signo)
        if received.si_signo == signal.SIGTSTP:
            _stop_too()


def _is_for_both(received: signal.struct_siginfo) -> bool:
    """Whether the kernel sent it to the child, too."""
    if received.si_code != FROM_THE_KERNEL:
        return False
    leads = os.getsid(0) == os.getpid()
    return received.si_signo in (TYPED if leads else TYPED | HUNG_UP)


def _stop_too() -> None:
    """Unless the kernel does not allow it, as nobody could continue us (an orphaned group)."""
    os.kill(os.getpid(), signal.SIGTSTP)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTSTP})
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTSTP})


def end_like(status: int) -> NoReturn:
    """
    End this process at once as another one ended: with its exit code, or by its signal.

    Args:
        status: As from ``waitpid``.
    """
    with suppress(OSError, ValueError, AttributeError):  # closed, broken, or none
        sys.stderr.flush()
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        _die_by(-code)
        code = 128 - code  # process 1 of a container outlives its own signals
    os._exit(code)


def _die_by(number: int) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the child's is enough
    with suppress(OSError):  # SIGKILL has no handler
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.kill(os.getpid(), number)
