"""
The dataset card: README.md of a dataset, generated from the contract.

It describes the columns, not the runs. What a person wrote around our section and
into the YAML is kept.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from .schema import CONFIGS, DEFAULT, Column

START, END = "<!-- hubmeter:start -->", "<!-- hubmeter:end -->"

TAGS = ["hubmeter", "opentelemetry", "otlp", "metrics", "gpu-metrics", "time-series",
        "telemetry", "energy", "carbon-footprint", "agent-evaluation"]  # fmt: skip

_FRONT_MATTER = re.compile(
    r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE
)
_CONFIGS_BLOCK = re.compile(r"^configs[ \t]*:.*\n(?:[ \t-].*\n|[ \t\r]*\n)*", re.MULTILINE)

_BODY = """\
{start}
# GPU metrics

One row per instant and GPU: utilization, memory, temperature, power, energy, CO2 and cost
of the runs in this dataset. Made by hubmeter from
OpenTelemetry metrics.

## Open it

```python
from datasets import load_dataset

rows = load_dataset("{name}", split="train")              # one row per instant and GPU
points = load_dataset("{name}", "points", split="train")  # all other data points, if there are any
```

```sql
-- duckdb, in the folder of this dataset
SELECT run_id, gpu_id, max(gpu_temperature_celsius), max(energy_joules) / 3600 AS wh
FROM 'data/default/*/*.parquet' GROUP BY run_id, gpu_id;
```

## Columns of `default`

A null means: not measured. Cumulative columns grow within a run and GPU. Take the
largest value per run and GPU, then add. A row with `gpu_id` null is about the whole run.

{default_columns}

## Columns of `points`

{points_columns}

## Before you share it

`host_name`, `service_name` and the resource attributes in `points` are published as the
sender wrote them. CO2 and cost use the factors in the metadata of each Parquet file
(`hubmeter.carbon_g_per_kwh`, `hubmeter.price_usd_per_kwh`, `hubmeter.pue`).
{end}
"""


def card_text(name: str, *, configs: Sequence[str], contents: str = "", existing: str = "") -> str:
    """
    The card of the dataset *name*, with what a person added to *existing* kept.

    Args:
        name: How a reader opens the dataset: a repository id or a folder.
        configs: Configs that have at least one file; a reader fails on the others.
        contents: Words that differ whenever the files differ. ``datasets`` 5.2 caches a
            local folder under its name and card only, and would go on showing old rows.
        existing: The card as it is.
    """
    section = _BODY.format(
        start=START,
        end=END,
        name=_plain(name),
        default_columns=_column_table(DEFAULT),
        points_columns=_column_table(CONFIGS["points"]),
    )
    header, body = _split(existing)
    known = _mapping(header)
    if known is None:  # not YAML, no reader could open the dataset: kept as text
        header, body = "", header + body
    header = _front_matter(header, known or {}, [config_entry(c, contents) for c in configs])
    return f"---\n{header}---\n{_with_section(body, section)}"


def _front_matter(header: str, known: dict[str, Any], configs: list[dict[str, Any]]) -> str:
    """YAML with our configs, and all else as it was, to the letter if possible."""
    if not known:
        known = {"pretty_name": "GPU metrics", "library_name": "hubmeter", "tags": TAGS}
        return header + _yaml({**known, "configs": configs})
    merged = {**known, "configs": _merged(configs, known.get("configs"))}
    if merged == _mapping(header):
        return header
    block = _yaml({"configs": merged["configs"]})
    edited, found = _CONFIGS_BLOCK.subn(lambda _: block, header, count=1)
    edited = edited if found else header + block
    return edited if _mapping(edited) == merged else _yaml(merged)


def _yaml(values: dict[str, Any]) -> str:
    import yaml

    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return text


def _merged(ours: list[dict[str, Any]], others: Any) -> list[dict[str, Any]]:
    """Our configs, with keys that a person added, then the configs of others."""
    listed = others if isinstance(others, list) else []
    theirs = [
        config
        for config in listed
        if isinstance(config, dict) and isinstance(config.get("config_name"), str)
    ]
    added = {config.get("config_name"): config for config in theirs}
    return [{**added.get(config["config_name"], {}), **config} for config in ours] + [
        # A second default config would make the dataset unreadable.
        {key: value for key, value in config.items() if key != "default"}
        for config in theirs
        if config.get("config_name") not in CONFIGS
    ]


def config_entry(config: str, contents: str = "") -> dict[str, Any]:
    """What the card says about where the files of a config are."""
    return {
        "config_name": config,
        **({"default": True} if config == "default" else {}),
        **({"description": contents} if contents else {}),
        "data_files": [{"split": "train", "path": f"data/{config}/*/*.parquet"}],
    }


def _split(text: str) -> tuple[str, str]:
    found = _FRONT_MATTER.match(text)
    return (found[1], text[found.end() :]) if found else ("", text)


def _mapping(header: str) -> dict[str, Any] | None:
    """What *header* says; None if it is not a mapping in YAML."""
    import yaml

    try:
        known: Any = yaml.safe_load(header)
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: an impossible date
        return None
    if known is None:
        return {}
    return known if isinstance(known, dict) else None


def _with_section(body: str, section: str) -> str:
    """*body* with our section where it was, else before all that a person wrote."""
    start = body.find(START)
    end = body.find(END, start)
    if 0 <= start < end:
        return body[:start] + section.rstrip("\n") + body[end + len(END) :]
    rest = body.lstrip("\r\n")
    return f"{section}\n{rest}" if rest else section


def _column_table(columns: tuple[Column, ...]) -> str:
    lines = ["| column | type | unit | kind | meaning |", "|---|---|---|---|---|"]
    lines += [f"| `{c.name}` | {c.type} | {c.unit} | {c.semantic} | {c.meaning} |" for c in columns]
    return "\n".join(lines)


def _plain(name: str) -> str:
    """Names from outside are text: nothing that could end the string or the code block."""
    return re.sub(r"[^\w./~ -]", "_", name)
