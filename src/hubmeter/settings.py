"""
Settings: names, defaults, meaning, and where each value came from.

The only module that reads the environment. A wrong value is a warning and the
default, never an exception: the program that is being observed must not notice.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from numbers import Number
from pathlib import Path
from typing import Any, Literal

from .text import HIDDEN, Secret

LONGEST_NAME = 96

OFF = ("off", "0", "none", "no")

_SECRET = re.compile(r"@|hf_\w{8,}")

HUB_URL = re.compile(r"hf://datasets/[^/@]+/[^/@]+/?")

_HUB_PAGE = re.compile(r"https?://[\w.:-]+/datasets/([\w.-]+/[\w.-]+).*")

_ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:.%]+\]|[\w.-]+):[0-9]{1,5}")

_USERS_REPO = re.compile(r"(?:\{user\}|[\w-][\w.-]*)/[\w-](?:[\w.-]|\{user\})*")
"""A repository whose name has ``{user}`` in it; anything else would be a folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """
    One setting, as the documentation and ``hubmeter doctor`` show it.

    Attributes:
        name: Field of :class:`Settings`, and key in ``hubmeter.toml``.
        variable: Environment variable; *fallbacks* are asked after it.
        is_secret: No message repeats its value.
    """

    name: str
    variable: str
    default: Any
    parse: Callable[[str], Any]
    meaning: str
    fallbacks: tuple[str, ...] = ()
    is_secret: bool = False


def _number(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise ValueError(f"expected a number from {low:g} to {high:g}")
        return value

    return parse


def _choice(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"expected one of: {', '.join(words)}")
        return text

    return parse


def _switch(text: str) -> bool:
    try:
        return {"1": True, "true": True, "yes": True, "on": True,
                "0": False, "false": False, "no": False, "off": False}[text.lower()]  # fmt: skip
    except KeyError:
        raise ValueError("expected 1 or 0") from None


def _text(text: str) -> str:
    if not text:
        raise ValueError("expected some text")
    if not text.isprintable():
        raise ValueError("expected text without control characters, in UTF-8")
    return text


def _destination(text: str) -> str:
    filled = re.sub(r"\{(?:date|run_id)\}", "0", text)
    if set("{}") & set(filled.replace("{user}", "")):
        raise ValueError("expected no other braces than {user}, {date} and {run_id}")
    is_url = bool(HUB_URL.fullmatch(filled))
    if (page := _HUB_PAGE.fullmatch(text)) and not _SECRET.search(text):
        raise ValueError(f"expected hf://datasets/{page[1]}, not the address of its page")
    if not text or "\0" in text or ("://" in text and not is_url):
        raise ValueError("expected a folder, user/repo or hf://datasets/user/repo")
    if "{user}" in text and not is_url and not _USERS_REPO.fullmatch(filled):
        raise ValueError("expected a repository on the Hub such as {user}/repo where {user} is")
    return text


def _folder_or_off(text: str) -> str:
    if not text or "\0" in text or "://" in text:
        raise ValueError("expected a folder, or off")
    return "" if text.lower() in OFF else text


def _seconds_or_off(text: str) -> float:
    return 0.0 if text.lower() in OFF else _number(1, 7 * 86_400)(text)


def _address_or_off(text: str) -> str:
    if text.lower() in OFF:
        return ""
    if not _ADDRESS.fullmatch(text) or int(text.rpartition(":")[2]) > 65_535:
        raise ValueError("expected host:port such as 127.0.0.1:4318 or [::1]:4318, or off")
    return text


def _bearer(text: str) -> Secret:
    if not re.fullmatch(r"[\x21-\x7e]{8,4096}", text):
        raise ValueError("expected 8 or more visible ASCII characters")
    return Secret(text)


def default_journal_dir() -> str:
    """``$HF_HOME/hubmeter``, with the default that ``huggingface_hub`` has for ``HF_HOME``."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or f"{cache}/huggingface"
    return f"{home}/hubmeter"


SETTINGS: tuple[Setting, ...] = (
    Setting(name="to", variable="HUBMETER_TO", default="./hubmeter-data",
            parse=_destination,
            meaning="folder, user/repo or hf://datasets/user/repo; {user}, {date}, {run_id}"),
    Setting(name="private", variable="HUBMETER_PRIVATE", default=True, parse=_switch,
            meaning="a repository that is made is private; 0 also allows public ones"),
    Setting(name="run_id", variable="HUBMETER_RUN_ID", default=None, parse=_text,
            meaning="when the resource has no run.id; default a new UUID"),
    Setting(name="missing", variable="HUBMETER_MISSING", default="null",
            parse=_choice("null", "zero"),
            meaning="zero fills the seven seed metrics as smoltrace does"),
    Setting(name="points", variable="HUBMETER_POINTS", default="other",
            parse=_choice("all", "other", "none"),
            meaning="what the points table keeps; other = what has no column"),
    Setting(name="gpus", variable="HUBMETER_GPUS", default="visible", parse=_text,
            meaning="visible, all, none, indices (0,2), UUIDs, MIG-UUIDs or index:instance"),
    Setting(name="sample_interval_s", variable="HUBMETER_SAMPLE_INTERVAL", default=1.0,
            parse=_number(0.05, 3600), meaning="seconds between two readings of a GPU"),
    Setting(name="price_usd_per_kwh", variable="HUBMETER_PRICE_KWH", default=0.12,
            parse=_number(0, 100), meaning="USD per kWh",
            fallbacks=("GENAI_POWER_COST_PER_KWH",)),
    Setting(name="carbon_g_per_kwh", variable="HUBMETER_CARBON_INTENSITY", default=475.0,
            parse=_number(0, 2000), meaning="gCO2e per kWh; 475 is the IEA world mean of 2019",
            fallbacks=("GENAI_CARBON_INTENSITY", "CODECARBON_FORCE_CARBON_INTENSITY_G_CO2E_KWH")),
    Setting(name="pue", variable="HUBMETER_PUE", default=1.0, parse=_number(1, 10),
            meaning="power usage effectiveness of the data centre, multiplies CO2 and cost"),
    Setting(name="journal_dir", variable="HUBMETER_JOURNAL_DIR", default=default_journal_dir,
            parse=_folder_or_off,
            meaning="points are here before they are acknowledged; off = memory only"),
    Setting(name="journal_limit_mib", variable="HUBMETER_JOURNAL_LIMIT", default=1024.0,
            parse=_number(1, 2**20), meaning="MiB that a run may have in the journal"),
    Setting(name="journal_full", variable="HUBMETER_JOURNAL_FULL", default="refuse",
            parse=_choice("refuse", "drop-oldest"),
            meaning="at the limit: refuse new points, or drop the oldest; both are counted"),
    Setting(name="fsync", variable="HUBMETER_FSYNC", default=False, parse=_switch,
            meaning="fsync each journal record, to survive a power cut too"),
    Setting(name="flush_every_s", variable="HUBMETER_FLUSH_EVERY", default=0.0,
            parse=_seconds_or_off, meaning="seconds between two published parts of a run; off"),
    Setting(name="signals", variable="HUBMETER_SIGNALS", default=True, parse=_switch,
            meaning="publish on SIGTERM and SIGHUP where nothing else handles them"),
    Setting(name="sentinel", variable="HUBMETER_SENTINEL", default=False, parse=_switch,
            meaning="a helper process that publishes after a hard kill"),
    Setting(name="self_metrics", variable="HUBMETER_SELF_METRICS", default=False, parse=_switch,
            meaning="report hubmeter's own counts as OpenTelemetry metrics"),
    Setting(name="serve_http", variable="HUBMETER_SERVE_HTTP", default="127.0.0.1:4318",
            parse=_address_or_off, meaning="where hubmeter serve takes OTLP/HTTP; off"),
    Setting(name="serve_grpc", variable="HUBMETER_SERVE_GRPC", default="127.0.0.1:4317",
            parse=_address_or_off, meaning="where hubmeter serve takes OTLP/gRPC; off"),
    Setting(name="serve_token", variable="HUBMETER_SERVE_TOKEN", default=None, parse=_bearer,
            meaning="bearer token that senders must have", is_secret=True),
    Setting(name="serve_cert", variable="HUBMETER_SERVE_CERT", default=None, parse=_text,
            meaning="PEM file with the certificate chain of the receiver; with it, TLS only"),
    Setting(name="serve_key", variable="HUBMETER_SERVE_KEY", default=None, parse=_text,
            meaning="PEM file with its private key"),
    Setting(name="serve_client_ca", variable="HUBMETER_SERVE_CLIENT_CA", default=None,
            parse=_text, meaning="PEM file; senders need a certificate that it signed"),
    Setting(name="serve_limit_mib", variable="HUBMETER_SERVE_LIMIT", default=64.0,
            parse=_number(0.001, 1024), meaning="MiB of one request, also after decompression"),
    Setting(name="serve_silence_s", variable="HUBMETER_SERVE_SILENCE", default=180.0,
            parse=_number(1, 7 * 86_400),
            meaning="seconds after which a silent run is published"),
    Setting(name="serve_runs", variable="HUBMETER_SERVE_RUNS", default=1000.0,
            parse=_number(1, 50_000), meaning="runs that are open at a time"),
    Setting(name="disabled", variable="HUBMETER_DISABLED", default=False, parse=_switch,
            meaning="switch everything off"),
)  # fmt: skip
"""All settings, in the order of the documentation (DESIGN section 6)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """
    Effective settings of one exporter, sampler or command.

    Attributes:
        journal_dir: Empty for memory only.
        serve_http: ``host:port``, or empty for off; likewise *serve_grpc*.
        origins: Field name to where its value came from.
        problems: One sentence for each value that could not be used.
    """

    to: str = "./hubmeter-data"
    run_id: str | None = None
    missing: Literal["null", "zero"] = "null"
    points: Literal["all", "other", "none"] = "other"
    gpus: str = "visible"
    sample_interval_s: float = 1.0
    price_usd_per_kwh: float = 0.12
    carbon_g_per_kwh: float = 475.0
    pue: float = 1.0
    private: bool = True
    journal_dir: str = ""
    journal_limit_mib: float = 1024.0
    journal_full: Literal["refuse", "drop-oldest"] = "refuse"
    fsync: bool = False
    flush_every_s: float = 0.0
    signals: bool = True
    sentinel: bool = False
    self_metrics: bool = False
    serve_http: str = "127.0.0.1:4318"
    serve_grpc: str = "127.0.0.1:4317"
    serve_token: Secret | None = None
    serve_cert: str | None = None
    serve_key: str | None = None
    serve_client_ca: str | None = None
    serve_limit_mib: float = 64.0
    serve_silence_s: float = 180.0
    serve_runs: float = 1000.0
    disabled: bool = False
    cuda_visible_devices: str | None = None
    origins: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def load_settings(**given: Any) -> Settings:
    """
    Read the settings: *given* before environment before file before default.

    Args:
        given: Values by field name, as arguments in code or flags; None is "not given".

    Returns:
        Settings that are always usable; what was wrong is in ``problems``.
    """
    file_values, problems = _file_values()
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for setting in SETTINGS:
        default = setting.default() if callable(setting.default) else setting.default
        values[setting.name], origins[setting.name] = default, "default"
        wrong: list[str] = []
        for origin, text in _candidates(setting, given, file_values):
            try:
                value = setting.parse(_as_text(text).strip())
            except ValueError as error:
                shown = HIDDEN if setting.is_secret else _shown(text)
                wrong.append(f"{origin}={shown} is ignored: {error}")
                continue
            values[setting.name], origins[setting.name] = value, origin
            break
        problems += [f"{problem}; instead: {values[setting.name]}" for problem in wrong]
    problems += _unknown("arguments", given) + _unknown("hubmeter.toml", file_values)
    problems += _unknown_variables()
    return Settings(
        **values,
        cuda_visible_devices=os.environ.get("CUDA_VISIBLE_DEVICES"),
        origins=origins,
        problems=tuple(problems),
    )


def new_run_id(settings: Settings) -> str:
    """The configured run id, or a new UUID."""
    import uuid

    return settings.run_id or str(uuid.uuid4())


def fill_in_date(destination: str) -> str:
    """Replace ``{date}`` by now (UTC), as smoltrace names its datasets."""
    return destination.replace("{date}", datetime.now(timezone.utc).strftime("%Y%m%d_%H%M%S"))


def fill_in_run(destination: str, run_id: str) -> str:
    """Replace ``{run_id}`` in a destination, which it cannot leave."""
    return destination.replace("{run_id}", safe_name(run_id))


def safe_name(text: str) -> str:
    """
    *text* as the name of a file or folder; different texts stay different.

    It cannot leave its folder, and does not begin with what hides a file (pyarrow and
    pandas skip names that begin with a dot or an underscore).
    """
    safe = re.sub(r"[^A-Za-z0-9_.-]", "_", text).lstrip("._-")[:LONGEST_NAME]
    if safe and safe == text:
        return safe
    import hashlib

    digest = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:8]
    return "-".join(filter(None, (safe, digest)))


def _candidates(
    setting: Setting, given: Mapping[str, Any], file_values: Mapping[str, Any]
) -> Iterator[tuple[str, Any]]:
    if given.get(setting.name) is not None:
        yield f"argument {setting.name}", given[setting.name]
    for variable in (setting.variable, *setting.fallbacks):
        if os.environ.get(variable):
            yield variable, os.environ[variable]
    if setting.name in file_values:
        yield f"file {setting.name}", file_values[setting.name]


def _unknown_variables() -> list[str]:
    known = {setting.variable for setting in SETTINGS}
    names = sorted(n for n in os.environ if n.startswith("HUBMETER_") and n not in known)
    return [f"{name} is no setting: see hubmeter doctor" for name in names]


def _shown(value: Any) -> str:
    """A wrong value as a message may repeat it: not if there may be a token in it."""
    return HIDDEN if _SECRET.search(str(value)) else repr(value)


def _as_text(value: Any) -> str:
    """What the environment would say for *value*."""
    if isinstance(value, list | tuple):
        return ",".join(map(_as_text, value))
    if not isinstance(value, str | Number | os.PathLike):
        raise ValueError("expected text or a number")  # noqa: TRY004 - one kind of wrong value
    return str(value)


def _unknown(place: str, values: Mapping[str, Any]) -> list[str]:
    """One sentence about all names in *values* that mean nothing, or none."""
    unknown = sorted(str(name) for name in values.keys() - {setting.name for setting in SETTINGS})
    return [f"not a setting, ignored in {place}: {', '.join(unknown)}"] if unknown else []


def _file_values() -> tuple[Mapping[str, Any], list[str]]:
    """``hubmeter.toml``, else ``[tool.hubmeter]`` of ``pyproject.toml``, in this folder."""
    for name, keys in (("hubmeter.toml", ()), ("pyproject.toml", ("tool", "hubmeter"))):
        try:
            text = Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        try:
            values: Any = _toml(text)
        except ValueError as error:
            return {}, [f"{name} is ignored: {error}"]
        for key in keys:
            values = values.get(key, {}) if isinstance(values, Mapping) else {}
        if isinstance(values, Mapping) and values:
            return values, []
    return {}, []


def _toml(text: str) -> Mapping[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(text)
