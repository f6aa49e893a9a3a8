"""pytest: what large tests counted, at the end of the run; import all into a conftest."""

from collections.abc import Callable

import pytest

__all__ = ["pytest_terminal_summary", "report_counts"]

NAME = "counts"


@pytest.fixture(name="report_counts")
def report_counts(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """
    Says a line at the end of the run.

    pytest-xdist shows nothing of what its workers print, but reports bring their properties along.
    """
    return lambda line: request.node.user_properties.append((NAME, line))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The lines of all tests, whether they passed or failed."""
    reports = [
        report
        for outcome in ("passed", "failed")
        for report in terminalreporter.stats.get(outcome, [])
        if report.when == "call"
    ]
    lines = [line for report in reports for name, line in report.user_properties if name == NAME]
    if lines:
        terminalreporter.section("counts")
        terminalreporter.write("".join(f"{line}\n" for line in lines))
