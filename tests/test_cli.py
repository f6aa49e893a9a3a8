"""The command line, run as a user runs it: another process, real files and pipes."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

HUBMETER = [sys.executable, "-m", "hubmeter"]


def run(*arguments: str, stdin: str | bytes = "", cwd: Path | None = None, **env: str):
    data = stdin.encode() if isinstance(stdin, str) else stdin
    done = subprocess.run(
        [*HUBMETER, *arguments],
        input=data,
        capture_output=True,
        cwd=cwd,
        env={**os.environ, **env},
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def request(*, seconds: int = 0, gpu: str = "0", value: float = 50.0, **point: object) -> dict:
    data_point = {
        "timeUnixNano": str((1_761_544_695 + seconds) * 10**9),
        "asDouble": value,
        "attributes": [{"key": "gpu_id", "value": {"stringValue": gpu}}],
        **point,
    }
    metric = {
        "name": "gen_ai.gpu.utilization",
        "unit": "%",
        "gauge": {"dataPoints": [data_point]},
    }
    resource = {"attributes": [{"key": "run.id", "value": {"stringValue": "run-1"}}]}
    return {"resourceMetrics": [{"resource": resource, "scopeMetrics": [{"metrics": [metric]}]}]}


@pytest.fixture(name="metrics_file")
def _metrics_file(tmp_path: Path) -> Path:
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps(request(seconds=s, gpu=g, value=10.0 * s)) for s in range(6) for g in "01"]
    path.write_text("\n".join(lines))
    return path


def test_flatten_writes_json_lines_to_stdout_and_the_count_to_stderr(metrics_file: Path) -> None:
    """
    The result is on stdout, a row per line, and nothing else is.
    """
    code, out, err = run("flatten", str(metrics_file))

    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [(r["gpu_id"], r["gpu_utilization_percent"]) for r in rows[:3]] == [
        ("0", 0.0),
        ("1", 0.0),
        ("0", 10.0),
    ]
    assert len(rows) == 12
    assert err.strip() == "12 rows, 0 other points (--config points)"


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_flatten_writes_the_format_that_the_name_says(metrics_file: Path, suffix: str) -> None:
    """
    All formats hold the same rows.
    """
    out = metrics_file.with_name(f"rows.{suffix}")

    code, stdout, _ = run("flatten", str(metrics_file), "-o", str(out))

    assert (code, stdout) == (0, "")
    match suffix:
        case "parquet":
            gpus = pq.read_table(out)["gpu_id"].to_pylist()
        case "csv":
            gpus = [row["gpu_id"] for row in csv.DictReader(out.read_text().splitlines())]
        case _:
            gpus = [json.loads(line)["gpu_id"] for line in out.read_text().splitlines()]
    assert gpus == ["0", "1"] * 6
    assert sorted(p.name for p in out.parent.iterdir()) == ["metrics.jsonl", out.name]


def test_flatten_reads_stdin(metrics_file: Path) -> None:
    """
    A dash is standard input.
    """
    code, out, _ = run("flatten", "-", stdin=metrics_file.read_bytes())

    assert (code, len(out.splitlines())) == (0, 12)


def test_flatten_counts_what_it_skips_and_succeeds() -> None:
    """
    Bad records among good ones are named on stderr, and the exit code is 0.
    """
    lines = [
        json.dumps(request()),
        "{not json",
        json.dumps(request(seconds=1, timeUnixNano="soon")),
        json.dumps({"resourceProfile": []}),
        json.dumps({"resourceLogs": []}),
    ]

    code, out, err = run("flatten", "-", stdin="\n".join(lines))

    assert (code, len(out.splitlines())) == (0, 1)
    assert "skipped 1: a line is not JSON" in err
    assert "skipped 1: a timestamp is not an integer" in err
    assert "skipped 1: a record is not an OTLP metrics request (no resourceMetrics)" in err
    assert "passed over 1 record of logs" in err


@pytest.mark.parametrize("text", ["", "   \n", "not json", '{"a": 1}', "[]", '"x"', "\x00\xff"])
def test_flatten_of_nothing_usable_is_one_clear_line(text: str) -> None:
    """
    Exit code 1, nothing on stdout, one line on stderr, no traceback.
    """
    code, out, err = run("flatten", "-", stdin=text)

    assert (code, out) == (1, "")
    assert err.startswith("hubmeter: ")
    assert len(err.splitlines()) == 1


def test_a_missing_file_is_one_clear_line() -> None:
    """
    The line names the file.
    """
    code, _, err = run("flatten", "nowhere.json")

    assert (code, err) == (1, "hubmeter: nowhere.json: No such file or directory\n")


def test_an_unknown_output_format_is_refused_before_any_work(tmp_path: Path) -> None:
    """
    The line says which names are known.
    """
    code, _, err = run("flatten", "nowhere.json", "-o", str(tmp_path / "rows.xlsx"))

    assert code == 1
    assert "must end in one of .parquet, .csv, .jsonl" in err


def test_an_output_folder_that_does_not_exist_leaves_nothing_behind(metrics_file: Path) -> None:
    """
    One line, exit code 1.
    """
    code, _, err = run("flatten", str(metrics_file), "-o", "/proc/none/rows.csv")

    assert code == 1
    assert len(err.splitlines()) == 1


def test_a_closed_pipe_ends_quietly(metrics_file: Path) -> None:
    """
    ``hubmeter flatten ... | head -1`` prints a row and no complaint.
    """
    big = "\n".join(json.dumps(request(seconds=s)) for s in range(3000))
    metrics_file.write_text(big)
    command = f"{sys.executable} -m hubmeter flatten {metrics_file} | head -1"

    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, timeout=60, check=False
    )

    assert done.stdout.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert "Broken" not in done.stderr


def test_points_have_a_config_of_their_own() -> None:
    """
    ``--config points`` gives what has no column.
    """
    other = request()
    other["resourceMetrics"][0]["scopeMetrics"][0]["metrics"][0]["name"] = "my.metric"

    code, out, _ = run("flatten", "-", "--config", "points", stdin=json.dumps(other))

    [row] = [json.loads(line) for line in out.splitlines()]
    assert (code, row["metric_name"], row["value"]) == (0, "my.metric", 50.0)


def test_fill_zero_is_for_the_seven_seed_metrics_only() -> None:
    """
    Other columns stay null.
    """
    _, out, _ = run("flatten", "-", "--fill", "zero", stdin=json.dumps(request()))

    row = json.loads(out)
    assert (row["gpu_power_watts"], row["power_cost_usd"], row["energy_joules"]) == (0.0, 0.0, None)


def test_a_name_with_control_characters_cannot_steer_the_terminal() -> None:
    """
    Names from outside are text.
    """
    evil = request(gpu="\x1b[2J\x07")

    _, out, _ = run("summary", "-", stdin=json.dumps(evil))

    assert "\x1b" not in out
    assert "?[2J?" in out


def test_summary_as_json_has_a_schema_version_and_totals(metrics_file: Path) -> None:
    """
    Machines get numbers, not text.
    """
    code, out, _ = run("summary", str(metrics_file), "--format", "json")

    data = json.loads(out)
    assert (code, data["schema_version"], data["totals"]["gpus"]) == (0, 1, 2)
    assert [gpu["utilization_mean_percent"] for gpu in data["gpus"]] == [25.0, 25.0]


def test_summary_by_run_has_one_line_per_run(metrics_file: Path) -> None:
    """
    ``--by run`` as text and as JSON.
    """
    _, out, _ = run("summary", str(metrics_file), "--by", "run")
    _, data, _ = run("summary", str(metrics_file), "--by", "run", "--format", "json")

    assert [line.split()[0] for line in out.splitlines() if line] == ["run", "run-1"]
    assert [entry["run_id"] for entry in json.loads(data)["runs"]] == ["run-1"]


def test_summary_of_a_folder_that_is_no_dataset_says_what_is_missing(tmp_path: Path) -> None:
    """
    The line says what was expected there.
    """
    code, _, err = run("summary", str(tmp_path))

    assert code == 1
    assert "expected data/<config>/<month>/*.parquet" in err


def test_every_command_has_help_that_fits_a_terminal() -> None:
    """
    ``--help`` exits with 0, and no line is wider than 100 columns.
    """
    for command in ((), ("demo",), ("flatten",), ("summary",), ("doctor",), ("push",)):
        code, out, _ = run(*command, "--help")
        assert code == 0
        assert out.startswith("Usage: ")
        assert max(map(len, out.splitlines())) <= 100


def test_wrong_usage_exits_with_2() -> None:
    """
    As click has it.
    """
    assert run("flatten")[0] == 2
    assert run("summary", "x", "--by", "moon")[0] == 2
    assert run("fly")[0] == 2


def test_help_loads_nothing_heavy() -> None:
    """
    ``hubmeter --help`` must answer at once.
    """
    code = (
        "import sys; sys.argv = ['hubmeter', '--help']\n"
        "from hubmeter.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'pyarrow', 'numpy', 'pandas', 'datasets', 'huggingface_hub', 'pynvml', 'grpc'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stderr.strip() == "[]"


def test_demo_records_shows_and_names_the_next_command(tmp_path: Path) -> None:
    """
    A dataset on disk, the summary on stdout, progress and the next command on stderr.
    """
    code, out, err = run("demo", "--seconds", "3", "--gpus", "3", cwd=tmp_path)

    assert code == 0, err
    assert "total: 3 GPUs" in out
    assert "Simulated GPU (no NVML)" in out
    named = [line.strip() for line in err.splitlines() if line.startswith("  ")]
    for command in named[:2]:
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
        done = subprocess.run(
            ["sh", "-c", command], cwd=tmp_path, env=env, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr
    [shard] = (tmp_path / "hubmeter-data").glob("data/default/*/*.parquet")
    rows = pq.read_table(shard).to_pandas()
    assert set(rows["gpu_name"]) == {"Simulated GPU (no NVML)"}
    assert rows["energy_joules"].max() > 0
    assert len(list((tmp_path / "hubmeter-data").glob("data/points/*/*.parquet"))) == 1


def test_an_interrupted_demo_keeps_what_it_recorded(tmp_path: Path) -> None:
    """
    Ctrl-C ends it with 130 and the dataset is there.
    """
    process = subprocess.Popen(
        [*HUBMETER, "demo", "--seconds", "60"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    while b"task 1" not in process.stderr.readline():
        pass
    time.sleep(2.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)

    assert process.returncode == 130
    assert b"Traceback" not in err
    assert len(list((tmp_path / "hubmeter-data").glob("data/default/*/*.parquet"))) == 1


def test_a_demo_that_cannot_write_says_so(tmp_path: Path) -> None:
    """
    A file where the folder should be: the summary is shown, the exit code is 1.
    """
    (tmp_path / "taken").write_text("a file")

    code, out, err = run("demo", "--to", "taken", "--seconds", "1", cwd=tmp_path)

    assert code == 1
    assert "total: 2 GPUs" in out
    assert "hubmeter: the dataset was not written to taken" in err
    assert "Traceback" not in err


def test_doctor_answers_for_a_machine_without_a_gpu(tmp_path: Path) -> None:
    """
    No GPU is a warning, not an error; each setting has an origin.
    """
    code, out, _ = run("doctor", cwd=tmp_path, HUBMETER_PRICE_KWH="0.3", LD_LIBRARY_PATH="")

    assert code == 0, out
    assert " !  gpu: " in out
    assert "HUBMETER_PRICE_KWH: 0.3 (HUBMETER_PRICE_KWH)" in out
    assert "HUBMETER_CARBON_INTENSITY: 475.0 (default)" in out


def test_doctor_fails_if_the_destination_cannot_be_written(tmp_path: Path) -> None:
    """
    An error, what to do, and exit code 1; the same as JSON.
    """
    (tmp_path / "file").write_text("not a folder")
    code, out, _ = run("doctor", "--format", "json", cwd=tmp_path, HUBMETER_TO="./file/data")

    [found] = [f for f in json.loads(out)["findings"] if f["subject"] == "destination"]
    assert (code, found["state"]) == (1, "error")
    assert "HUBMETER_TO" in found["advice"]


def test_doctor_reads_the_gpus_of_the_driver(standin_library: Path, tmp_path: Path) -> None:
    """
    Name, UUID and the time of a reading, through the real pynvml.
    """
    from standin import subprocess_env

    script = "gpus 2\nclock real\nfault nvmlDeviceGetFanSpeed -1 3 0 -1 0"
    env = subprocess_env(standin_library, script, tmp_path)

    code, out, err = run("doctor", cwd=tmp_path, **{**env, "HUBMETER_GPUS": "1"})

    assert code == 0, out + err
    assert "ok  gpu 1: " in out
    assert "per reading" in out
    assert "not selected" in next(line for line in out.splitlines() if "gpu 0: " in line)
    assert "fan_speed_percent" in out


@pytest.mark.parametrize("to", ["./{date}/{run_id}", "~/demo", "sp ace/ü"])
def test_demo_finds_its_dataset_wherever_it_is(tmp_path: Path, to: str) -> None:
    """
    Placeholders, a home folder and spaces are followed, and the printed command works.
    """
    home = {"HOME": str(tmp_path)}
    code, _, err = run("demo", "--seconds", "1", "--to", to, cwd=tmp_path, **home)

    assert code == 0, err
    [command] = [line.strip() for line in err.splitlines() if " summary " in line]
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, check=False)
    assert json.loads(done.stdout)["totals"]["gpus"] == 2


@pytest.mark.parametrize("arguments", [("--to", ""), ("--to", "s3://b/c"), ("--seconds", "nan")])
def test_demo_refuses_what_cannot_work_before_it_starts(tmp_path: Path, arguments) -> None:
    """
    Wrong usage is exit code 2, and nothing is recorded anywhere.
    """
    code, _, err = run("demo", *arguments, cwd=tmp_path)

    assert (code, list(tmp_path.iterdir())) == (2, [])
    assert "task 1" not in err


def test_demo_that_is_switched_off_says_so(tmp_path: Path) -> None:
    """
    HUBMETER_DISABLED leaves nothing to show.
    """
    code, _, err = run("demo", cwd=tmp_path, HUBMETER_DISABLED="1")

    assert (code, "HUBMETER_DISABLED is set" in err) == (1, True)


def test_flatten_does_not_replace_its_input(metrics_file: Path) -> None:
    """
    The same file as source and output is wrong usage.
    """
    before = metrics_file.read_bytes()

    code, _, err = run("flatten", str(metrics_file), "-o", str(metrics_file))

    assert (code, metrics_file.read_bytes()) == (2, before)
    assert "would replace the input" in err


def test_a_bad_shard_does_not_cost_the_good_ones(tmp_path: Path) -> None:
    """
    It is named on stderr, and the summary shows the others.
    """
    run("demo", "--seconds", "1", "--to", "d", cwd=tmp_path)
    [shard] = (tmp_path / "d").glob("data/default/*/*.parquet")
    shard.with_name("aaa.parquet").write_bytes(b"")

    code, out, err = run("summary", "d", cwd=tmp_path)

    assert (code, "2 GPUs" in out) == (0, True)
    assert "aaa.parquet is not a shard" in err


def test_summary_without_gpu_rows_says_where_to_look() -> None:
    """
    Points without a column are no reason for a blank answer.
    """
    other = request()
    other["resourceMetrics"][0]["scopeMetrics"][0]["metrics"][0]["name"] = "my.metric"

    code, _, err = run("summary", "-", stdin=json.dumps(other))

    assert (code, "no GPU rows" in err) == (0, True)


def test_doctor_names_unknown_variables_and_prints_no_control_characters(tmp_path: Path) -> None:
    """
    A typing error in a name is seen; a value cannot steer the terminal.
    """
    _, out, _ = run("doctor", cwd=tmp_path, HUBMETER_GPU="0", HUBMETER_TO="x\x1b]0;t\x07")

    assert "HUBMETER_GPU is no setting" in out
    assert "\x1b" not in out
