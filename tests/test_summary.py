"""Numbers and text of a summary, from tables with known answers."""

from __future__ import annotations

import pyarrow as pa
import pytest

from hubmeter.batch import PointBatch, Series, SeriesLayout
from hubmeter.flattening import Options, flatten_points
from hubmeter.ledger import gather
from hubmeter.tables import default_table
from hubmeter.views.summary import by_run, summarize
from hubmeter.views.summary_text import gpu_text, run_text, sparkline

START = 1_761_544_695_000_000_000

UNITS = {
    "gen_ai.gpu.utilization": "%",
    "gen_ai.gpu.power": "W",
    "gen_ai.gpu.memory.used": "MiB",
    "gen_ai.gpu.temperature": "Cel",
    "gen_ai.gpu.temperature.max": "Cel",
    "gen_ai.co2.emissions": "gCO2e",
    "gen_ai.power.cost": "USD",
    "gen_ai.gpu.energy": "J",
}


def batch(
    second: float, gpu: str | None = "0", run: str = "a", host: str = "h", **values: float
) -> PointBatch:
    names = {name.replace(".", "_"): name for name in UNITS}
    attributes = "{}" if gpu is None else f'{{"gpu_id":"{gpu}","gpu_name":"Test GPU"}}'
    series = tuple(
        Series(
            resource=f'{{"host.name":"{host}","run.id":"{run}","service.name":"svc"}}',
            scope_name="s",
            metric_name=names[key],
            unit=UNITS[names[key]],
            kind="gauge",
            attributes=attributes,
        )
        for key in values
    )
    time = START + round(second * 1e9)
    return PointBatch(
        layout=SeriesLayout(series), times_unix_nano=(time,), values=list(values.values())
    )


def summary_of(*batches: PointBatch):
    rows = flatten_points(gather(iter(batches)), Options(run_id="x"))
    return summarize(default_table(rows))


def test_a_gpu_is_summarized_from_its_rows() -> None:
    """
    Means, percentiles, peaks, idle share and duration of one GPU.
    """
    found = summary_of(
        *(
            batch(s, gen_ai_gpu_utilization=u, gen_ai_gpu_power=100 + s, gen_ai_gpu_memory_used=m)
            for s, u, m in [(0, 0, 10), (10, 50, 30), (20, 100, 20), (30, 50, 20)]
        )
    )

    [gpu] = found.gpus
    assert (gpu.rows, gpu.duration_s, gpu.gaps) == (4, 30.0, 0)
    assert gpu.utilization_mean_percent == 50
    assert gpu.idle_percent == 25
    assert gpu.memory_peak_mib == 30
    assert gpu.power_mean_watts == 115
    assert gpu.energy_joules is None
    assert gpu.service_name == "svc"


def test_totals_add_the_highest_value_of_each_run_and_gpu() -> None:
    """
    Cumulative columns are neither summed over rows nor taken once for all GPUs.
    """
    found = summary_of(
        *(
            batch(s, gpu=g, run=r, gen_ai_co2_emissions=(s + 1) * w)
            for s in range(3)
            for g, r, w in [("0", "a", 1.0), ("1", "a", 10.0), ("0", "b", 100.0)]
        )
    )

    assert found.totals.co2_gco2e == 333
    assert [(run, total.co2_gco2e) for run, total in by_run(found)] == [("a", 33), ("b", 300)]


def test_what_a_run_reports_as_a_whole_is_not_added_to_its_gpus() -> None:
    """
    The whole or the sum of the GPUs counts, whichever is more; never both.
    """
    both = [batch(0, gpu=g, gen_ai_co2_emissions=5.0, gen_ai_gpu_power=1) for g in "01"]
    whole = batch(0, gpu=None, gen_ai_co2_emissions=99.0, gen_ai_power_cost=7.0)

    found = summary_of(*both, whole)

    assert found.totals.co2_gco2e == 99
    assert found.totals.cost_usd == 7
    assert summary_of(*both).totals.co2_gco2e == 10
    assert found.totals.gpus == 2


def test_processes_one_after_the_other_in_one_run_add_up() -> None:
    """
    A total that falls once is a restart: 400 J, then 200 J are 600 J, and a note says so.
    """
    first = [batch(s, gen_ai_gpu_energy=10.0 * s) for s in range(41)]
    second = [batch(50 + s, gen_ai_gpu_energy=10.0 * s) for s in range(21)]

    rows = [
        default_table(flatten_points(gather(iter(part)), Options(run_id="x")))
        for part in (first, second)
    ]
    found = summarize(pa.concat_tables(rows))

    assert found.totals.energy_joules == 600
    assert "fell 1 times" in found.notes[0]


def test_processes_side_by_side_on_one_gpu_are_not_added() -> None:
    """
    Two that meter the same GPU at once would count its energy twice.
    """
    early = [batch(s, gen_ai_gpu_energy=10.0 * s) for s in range(40)]
    late = [batch(s + 0.5, gen_ai_gpu_energy=5.0 * s) for s in range(40)]
    rows = [
        default_table(flatten_points(gather(iter(part)), Options(run_id="x")))
        for part in (early, late)
    ]

    found = summarize(pa.concat_tables(rows))

    assert found.totals.energy_joules == 390


def test_the_highest_temperature_of_the_windows_wins() -> None:
    """
    A maximum is not hidden by a mean.
    """
    found = summary_of(batch(0, gen_ai_gpu_temperature=60, gen_ai_gpu_temperature_max=96))

    assert found.gpus[0].temperature_max_celsius == 96


def test_gaps_are_counted() -> None:
    """
    A pause of more than three usual intervals is one gap.
    """
    seconds = [0, 1, 2, 3, 10, 11, 12, 60, 61]

    found = summary_of(*(batch(s, gen_ai_gpu_power=1) for s in seconds))

    assert found.gpus[0].gaps == 2


def test_co2_of_an_old_genai_otel_is_flagged_and_not_changed() -> None:
    """
    100 W for an hour that claims 171 g and 0.0432 USD gets a note.
    """
    from hubmeter.energy import Factors

    batches = [
        batch(
            s,
            gen_ai_gpu_power=100,
            gen_ai_co2_emissions=171 * s / 3600,
            gen_ai_power_cost=0.0432 * s / 3600,
        )
        for s in range(0, 3601, 10)
    ]
    rows = flatten_points(gather(iter(batches)), Options(run_id="x", factors=Factors()))

    found = summarize(default_table(rows))

    assert found.totals.co2_gco2e == pytest.approx(171)
    assert found.totals.energy_joules == pytest.approx(360_000)
    [note] = found.notes
    assert "3.6 times" in note


def test_missing_values_are_dashes_in_the_text() -> None:
    """
    Nothing is invented for what was not measured.
    """
    text = gpu_text(summary_of(batch(0, gen_ai_gpu_power=12.0)))

    [line] = [line for line in text.splitlines() if "Test GPU" in line]
    assert line.split()[-3:] == ["–", "–", "–"]
    assert "12 / 12 W" in line


def test_hosts_are_shown_where_there_are_several() -> None:
    """
    Two hosts with a GPU 0 each stay apart.
    """
    text = gpu_text(summary_of(*(batch(0, host=h, gen_ai_gpu_power=1) for h in ("node1", "node2"))))

    assert "node1" in text
    assert "node2" in text
    assert "2 GPUs, 2 rows" in text


def test_run_text_has_a_line_per_run() -> None:
    """
    Titles, then runs in order of start.
    """
    text = run_text(
        summary_of(*(batch(s, run=r, gen_ai_gpu_power=1) for s, r in [(5, "b"), (0, "a")]))
    )

    assert [line.split()[0] for line in text.splitlines()] == ["run", "a", "b"]


def test_a_sparkline_goes_from_0_to_100_percent() -> None:
    """
    Lowest and highest bar, and a blank where nothing was measured.
    """
    assert sparkline([0, 50, 100, None]) == "▁▅█ "


def test_an_empty_table_has_an_empty_summary() -> None:
    """
    No row, no GPU, no number.
    """
    found = summary_of()

    assert found.gpus == ()
    assert found.totals.energy_joules is None
    assert gpu_text(found) == ""
