"""The version, as installed."""

from __future__ import annotations

from functools import cache


@cache
def version() -> str:
    """Version of the installed distribution; reading it takes a moment, so not at import."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("hubmeter")
    except PackageNotFoundError:
        return "0+unknown"
