"""
The command line. Each command is in ``commands``; how they speak, in ``terminal``.
"""

from __future__ import annotations

import click

from .commands.datasets import flatten, summary
from .commands.machine import demo, doctor
from .commands.publishing import push, recover, sentinel
from .commands.serving import serve
from .commands.wrapped import run

EPILOG = """\b
Examples:
  hubmeter demo
  hubmeter run -- node agent.js
  hubmeter serve --to me/run-metrics
  hubmeter flatten metrics.json -o rows.parquet
  hubmeter summary ./hubmeter-data --format json | jq .totals
  OTEL_METRICS_EXPORTER=hubmeter opentelemetry-instrument python agent.py
  hubmeter recover --dry-run
  hubmeter push ./hubmeter-data --to me/run-metrics
"""


@click.group(
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="hubmeter")
def main() -> None:
    """What your agent's GPUs did, as a flat dataset: one row per instant and GPU."""


for _command in (demo, run, serve, flatten, summary, recover, push, doctor, sentinel):
    main.add_command(_command)
