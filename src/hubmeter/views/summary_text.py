"""
A summary as text for a terminal. Pixels only, no numbers are made here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from ..text import counted, printable
from .summary import GpuSummary, Summary, Totals, by_run

BARS = "▁▂▃▄▅▆▇█"
MISSING = "–"
LONGEST_NAME = 34


@dataclass(frozen=True, slots=True)
class _Column:
    title: str
    text: Callable[[GpuSummary], str]
    is_left: bool = False


def gpu_text(summary: Summary) -> str:
    """One block per run: its GPUs as a table, their utilization as a line, the totals."""
    blocks = []
    for run_id, run_totals in by_run(summary):
        gpus = [gpu for gpu in summary.gpus if gpu.run_id == run_id]
        blocks.append("\n".join(_run_lines(run_id, gpus, run_totals)))
    if len(blocks) > 1:
        blocks.append(f"all {len(blocks)} runs: {_totals_text(summary.totals)}")
    blocks.extend(f"note: {printable(note)}" for note in summary.notes)
    return "\n\n".join(blocks)


def run_text(summary: Summary) -> str:
    """One line per run."""
    rows = [
        [
            printable(run_id),
            _span([gpu for gpu in summary.gpus if gpu.run_id == run_id]),
            str(run.gpus),
            str(run.rows),
            _energy(run.energy_joules),
            _grams(run.co2_gco2e),
            _dollars(run.cost_usd),
        ]
        for run_id, run in by_run(summary)
    ]
    titles = ["run", "time (UTC)", "GPUs", "rows", "energy", "CO2", "cost"]
    lines = list(_table(titles, rows, left={0, 1}))
    return "\n".join([*lines, "", *(f"note: {printable(note)}" for note in summary.notes)]).rstrip()


def _run_lines(run_id: str, gpus: Sequence[GpuSummary], totals: Totals) -> Iterator[str]:
    service = next((gpu.service_name for gpu in gpus if gpu.service_name), None)
    words = [f"run {printable(run_id)}", printable(service) if service else "", _span(gpus)]
    yield " · ".join(word for word in words if word)
    yield ""
    hosts = {gpu.host_name for gpu in gpus}
    columns = [*_HOST, *_COLUMNS] if len(hosts) > 1 else _COLUMNS
    cells = [[column.text(gpu) for column in columns] for gpu in gpus]
    left = {place for place, column in enumerate(columns) if column.is_left}
    yield from _table([column.title for column in columns], cells, left)
    trends = [gpu for gpu in gpus if any(value is not None for value in gpu.utilization_trend)]
    if trends:
        yield ""
        yield "utilization from start to end"
    for gpu in trends:
        yield f"  GPU {_gpu_id(gpu):<3} {sparkline(gpu.utilization_trend)}"
    yield ""
    yield f"total: {_totals_text(totals)}"


def sparkline(values: Sequence[float | None]) -> str:
    """Percentages as bars; a blank where nothing was measured."""
    return "".join(
        " " if value is None else BARS[min(7, max(0, int(value / 100 * 8)))] for value in values
    )


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]], left: set[int]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    for row in [titles, *rows]:
        cells = (
            cell.ljust(width) if place in left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()


def _totals_text(totals: Totals) -> str:
    sizes = (counted(totals.gpus, "GPU"), counted(totals.rows, "row"))
    amounts = (_energy(totals.energy_joules), _grams(totals.co2_gco2e), _dollars(totals.cost_usd))
    return ", ".join(sizes + amounts)


def _span(gpus: Sequence[GpuSummary]) -> str:
    first = datetime.fromisoformat(min(gpu.first for gpu in gpus))
    last = datetime.fromisoformat(max(gpu.last for gpu in gpus))
    until = f"{last:%H:%M:%S}" if last.date() == first.date() else f"{last:%Y-%m-%d %H:%M:%S}"
    return f"{first:%Y-%m-%d %H:%M:%S} to {until} UTC, {_duration((last - first).total_seconds())}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def _number(value: float | None, unit: str, digits: int = 0) -> str:
    return MISSING if value is None else f"{value:.{digits}f} {unit}"


def _energy(joules: float | None) -> str:
    if joules is None:
        return MISSING
    return f"{joules:.0f} J" if joules < 3600 else f"{joules / 3600:.1f} Wh"


def _grams(grams: float | None) -> str:
    if grams is None:
        return MISSING
    return f"{grams:.3g} g CO2e" if grams < 100 else f"{grams:.1f} g CO2e"


def _dollars(usd: float | None) -> str:
    if usd is None:
        return MISSING
    return f"{usd:.6f} USD" if usd < 0.01 else f"{usd:.4f} USD"


def _memory(gpu: GpuSummary) -> str:
    if gpu.memory_peak_mib is None:
        return MISSING
    total = "" if gpu.memory_total_mib is None else f" / {gpu.memory_total_mib / 1024:.1f}"
    return f"{gpu.memory_peak_mib / 1024:.1f}{total} GiB"


def _power(gpu: GpuSummary) -> str:
    if gpu.power_mean_watts is None:
        return MISSING
    return f"{gpu.power_mean_watts:.0f} / {gpu.power_max_watts:.0f} W"


def _name(gpu: GpuSummary) -> str:
    name = printable(gpu.gpu_name or ("" if gpu.gpu_id else "the run as a whole"))
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def _gpu_id(gpu: GpuSummary) -> str:
    return printable(gpu.gpu_id) if gpu.gpu_id is not None else MISSING


_HOST = [_Column("host", lambda gpu: printable(gpu.host_name or MISSING), is_left=True)]

_COLUMNS: list[_Column] = [
    _Column("GPU", _gpu_id),
    _Column("name", _name, is_left=True),
    _Column("rows", lambda gpu: str(gpu.rows)),
    _Column("util", lambda gpu: _number(gpu.utilization_mean_percent, "%")),
    _Column("p95", lambda gpu: _number(gpu.utilization_p95_percent, "%")),
    _Column("idle", lambda gpu: _number(gpu.idle_percent, "%")),
    _Column("memory peak", _memory),
    _Column("temp max", lambda gpu: _number(gpu.temperature_max_celsius, "°C")),
    _Column("power avg/max", _power),
    _Column("energy", lambda gpu: _energy(gpu.energy_joules)),
    _Column("CO2", lambda gpu: _grams(gpu.co2_gco2e).removesuffix(" CO2e")),
    _Column("cost", lambda gpu: _dollars(gpu.cost_usd)),
]
