"""`hubmeter run`: the command notices nothing, and what it did is a dataset."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agents.node.install import modules
from hubmeter.wrapping import environment_of_child
from loopback_hub import LoopbackHub
from makers import POWER, T0, gauge, point, request
from observed import column, shards, undisturbed  # noqa: F401
from standin import subprocess_env

AGENTS = Path(__file__).parent / "agents"
PYTHON_AGENT = [sys.executable, str(AGENTS / "python_agent.py")]
HUBMETER = [sys.executable, "-m", "hubmeter"]
RUN = [*HUBMETER, "run"]

GPUS = "gpus 2\nclock real\n"


def run(*command: str, before: tuple[str, ...] = (), **more: Any) -> Any:
    """Run `hubmeter run` in the current directory and say how it ended; streams are bytes."""
    return subprocess.run(
        [*RUN, *before, *command], capture_output=True, timeout=60, check=False, **more
    )


def start(*command: str, **more: Any) -> subprocess.Popen[bytes]:
    """Start `hubmeter run`, and return when *command* has said a first line."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([*RUN, *command], start_new_session=True, **{**streams, **more})
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def sh(script: str) -> tuple[str, ...]:
    return ("sh", "-c", script)


@pytest.fixture(name="gpus")
def _gpus(standin_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that are started find two GPUs of 100 W."""
    for name, value in subprocess_env(standin_library, GPUS, tmp_path).items():
        monkeypatch.setenv(name, value)


with_gpus = pytest.mark.usefixtures("gpus")


# -- the command notices nothing


@pytest.mark.parametrize(
    ("script", "ends"),
    [("exit 3", 3), ("kill -SEGV $$", -signal.SIGSEGV)],
)
def test_it_ends_as_the_command_ended(script: str, ends: int, tmp_path: Path) -> None:
    """Its exit code, or its signal; and the run is published before."""
    ended = run(*sh(script))

    assert ended.returncode == ends
    assert ended.stdout == b""
    assert len(shards(tmp_path / "hubmeter-data")) == 1
    assert not list(tmp_path.glob("core*"))


def test_streams_and_descriptors_are_those_of_the_command(tmp_path: Path) -> None:
    """Bytes pass as they are, and our words come after those of the command."""
    payload = bytes(range(256)) * 1000
    reading, writing = os.pipe()
    os.write(writing, b"from a descriptor")
    os.close(writing)
    ended = run(str(AGENTS / "shell_agent.sh"), str(reading), input=payload, pass_fds=[reading])
    os.close(reading)

    assert ended.stdout == payload + b"from a descriptor"
    assert ended.returncode == 3
    first, *others = ended.stderr.decode().splitlines()
    assert first == "the agent's error"
    assert others
    assert all(line.startswith("hubmeter: ") for line in others)
    assert others[-1].startswith("hubmeter: run ")
    assert f" is in {tmp_path}/hubmeter-data: " in others[-1]


def test_options_after_the_command_are_its_own() -> None:
    """`--` is only needed in front of a command that looks like an option."""
    ended = run("echo", "--to", "x", "-q", "--", "--help")

    assert (ended.returncode, ended.stdout) == (0, b"--to x -q -- --help\n")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [((), "Missing argument"), (("--to", "a{b", "true"), "braces"), (("--x", "true"), "--x")],
)
def test_wrong_usage_is_said_before_anything_runs(
    arguments: tuple[str, ...], complaint: str, tmp_path: Path
) -> None:
    """Exit code 2, and no dataset."""
    ended = run(*arguments)

    assert ended.returncode == 2
    assert complaint in ended.stderr.decode()
    assert not (tmp_path / "hubmeter-data").exists()


@pytest.mark.parametrize("disabled", ["0", "1"])
def test_a_command_that_cannot_run_is_one_line(tmp_path: Path, disabled: str) -> None:
    """As of a shell: 127 if there is none, 126 if it is no program. Nothing is recorded."""
    (tmp_path / "text").write_text("no program")
    environment = {**os.environ, "HUBMETER_DISABLED": disabled}
    missing = run("no-such-program", env=environment)
    refused = run("./text", env=environment)

    assert (missing.returncode, refused.returncode) == (127, 126)
    assert missing.stderr == b"hubmeter: cannot run no-such-program: No such file or directory\n"
    assert refused.stderr == b"hubmeter: cannot run ./text: Permission denied\n"
    assert not (tmp_path / "hubmeter-data").exists()
    assert not list(Path(os.environ["HF_HOME"]).rglob("*.journal"))


@pytest.mark.parametrize("disabled", ["0", "1"])
def test_a_script_without_an_interpreter_is_one_for_sh(tmp_path: Path, disabled: str) -> None:
    """As of a shell, by its path and by PATH."""
    script = tmp_path / "bin" / "script"
    script.parent.mkdir()
    script.write_text('echo "$0" "$@"; exit 5\n')
    script.chmod(0o755)
    path = f"{script.parent}:{os.environ['PATH']}"
    environment = {**os.environ, "HUBMETER_DISABLED": disabled, "PATH": path}
    for command in ("bin/script", "script"):
        ended = run(command, "a b", "-c", env=environment)
        found = command if "/" in command else str(script)
        assert (ended.returncode, ended.stdout) == (5, f"{found} a b -c\n".encode())


def test_switched_off_it_is_only_the_command(tmp_path: Path) -> None:
    """With HUBMETER_DISABLED=1 nothing is said or recorded, and no variable is added."""
    script = "env | grep -cE '^(OTEL|HUBMETER)'; kill -PIPE $$"
    ended = run(*sh(script), env={**os.environ, "HUBMETER_DISABLED": "1"})

    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGPIPE, b"1\n", b"")
    assert not (tmp_path / "hubmeter-data").exists()


@pytest.mark.parametrize("before", [(), ("--gpus", "none", "-q")])
def test_where_nothing_can_be_said_it_runs_all_the_same(
    before: tuple[str, ...], tmp_path: Path
) -> None:
    """With stderr on a full disk, say, and something to complain about."""
    environment = {**os.environ, "HUBMETER_PRICE_KWH": "abc"}
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(
            [*RUN, *before, *sh("echo RAN; exit 6")],
            stdout=subprocess.PIPE, stderr=full, env=environment, timeout=60, check=False,
        )  # fmt: skip

    assert (ended.returncode, ended.stdout) == (6, b"RAN\n")
    assert len(shards(tmp_path / "hubmeter-data")) == 1


def test_where_nothing_can_be_recorded_the_command_has_its_variables() -> None:
    """Those that are changed for us are as they were."""
    code = (
        "from hubmeter import wrapping; wrapping.Pipeline = None\n"
        "import sys; sys.argv = ['hubmeter', *sys.argv[1:]]\n"
        "from hubmeter.commands.wrapped import run; run()"
    )
    environment = {**os.environ, "OTEL_SDK_DISABLED": "true"}
    environment.pop("HF_HUB_DISABLE_PROGRESS_BARS", None)
    ended = subprocess.run(
        [sys.executable, "-c", code, *sh('echo "$OTEL_SDK_DISABLED$HF_HUB_DISABLE_PROGRESS_BARS"')],
        env=environment, capture_output=True, timeout=60, check=False,
    )  # fmt: skip

    assert (ended.returncode, ended.stdout) == (0, b"true\n")
    assert b"nothing is recorded" in ended.stderr


# -- variables of the command


def test_variables_that_are_set_stay() -> None:
    """Only what is unset is added; hubmeter's own say that its GPUs are metered already."""
    given = {
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
        "OTEL_RESOURCE_ATTRIBUTES": "team=blue",
        "HUBMETER_GPUS": "0",
        "PATH": "/bin",
    }

    assert environment_of_child(given, run_id="a, b", to="data", port=4444) == {
        **given,
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4444",
        "OTEL_METRICS_EXPORTER": "otlp",
        "HUBMETER_RUN_ID": "a, b",
        "HUBMETER_TO": "data",
        "HUBMETER_GPUS": "none",
    }
    added = environment_of_child({}, run_id="a, b", to="data", port=4444)
    assert added["OTEL_RESOURCE_ATTRIBUTES"] == "run.id=a%2C%20b"
    assert added["OTEL_EXPORTER_OTLP_PROTOCOL"] == "http/protobuf"
    assert not any(
        name.startswith("OTEL_")
        for name in environment_of_child({}, run_id="r1", to="data", port=None)
    )


@pytest.mark.parametrize("name", ["no_proxy", "NO_PROXY"])
def test_a_proxy_is_not_asked_for_our_port(name: str) -> None:
    """Clients read one or the other spelling; what was excepted before still is."""
    added = environment_of_child(
        {"ALL_PROXY": "proxy:3128", name: ".lan"}, run_id="r1", to="data", port=4444
    )

    assert (added["no_proxy"], added["NO_PROXY"]) == (".lan,127.0.0.1", ".lan,127.0.0.1")
    assert "no_proxy" not in environment_of_child({}, run_id="r1", to="data", port=4444)


@pytest.mark.parametrize("signal_of", ["", "METRICS_"])
def test_metrics_that_go_elsewhere_still_do(signal_of: str) -> None:
    """One line says so before the command runs; nothing is added that would divert them."""
    name = f"OTEL_EXPORTER_OTLP_{signal_of}ENDPOINT"
    ended = run(*sh("env | grep ^OTEL_ | sort"), env={**os.environ, name: "http://collector:4318"})

    assert ended.stdout.decode() == f"{name}=http://collector:4318\n"
    first = ended.stderr.decode().splitlines()[0]
    assert first == ("hubmeter: metrics of sh go to http://collector:4318: only GPUs are recorded")


# -- signals

HANG_UP = b""

TAKE_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""

EACH_ONCE = """
import os, signal, sys, time
name_of = {getattr(signal, name): name for name in sys.argv[1:]}
def note(number, _):
    print(name_of[number], flush=True)
    if number == signal.SIGTERM:
        os._exit(9)
for number in name_of:
    signal.signal(number, note)
print("ready", flush=True)
while True:
    time.sleep(1)
"""


def test_signals_are_passed_on_once(tmp_path: Path) -> None:
    """Whoever signals us means the command, which decides what becomes of it."""
    names = (
        *("SIGHUP", "SIGINT", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGCONT", "SIGABRT", "SIGALRM"),
        *("SIGVTALRM", "SIGPROF", "SIGXCPU", "SIGIO", "SIGPWR", "SIGRTMIN", "SIGRTMAX", "SIGTERM"),
    )
    process = start(sys.executable, "-c", EACH_ONCE, *names)
    assert process.stdout is not None
    for name in names:
        process.send_signal(getattr(signal, name))
        assert process.stdout.readline().decode() == f"{name}\n"
    rest, _ = process.communicate(timeout=30)

    assert (process.returncode, rest) == (9, b"")
    assert len(shards(tmp_path / "hubmeter-data")) == 1


def test_ctrl_c_reaches_the_command_once(tmp_path: Path) -> None:
    """The terminal sends it to both of us: the command gets it from there only, and we publish."""
    code = """
import signal, sys, time
times = 0
def count(*_):
    global times
    times += 1
signal.signal(signal.SIGINT, count)
print("ready", flush=True)
while not times:
    time.sleep(0.01)
time.sleep(0.5)
print("interrupted", times, "time", flush=True)
sys.exit(5)
"""
    ends, said = _in_a_terminal([*RUN, sys.executable, "-c", code], b"\x03")

    assert ends == 5
    assert "interrupted 1 time" in said
    assert "Traceback" not in said
    assert len(shards(tmp_path / "hubmeter-data")) == 1


def test_a_terminal_that_is_closed_ends_the_command(tmp_path: Path) -> None:
    """As the only job of `ssh -t`: the kernel tells the leader of the session, and nobody else."""
    ends, _ = _in_a_terminal([*RUN, *sh("echo ready; exec sleep 60")], HANG_UP)

    assert ends == -signal.SIGHUP
    assert len(shards(tmp_path / "hubmeter-data")) == 1


@pytest.mark.parametrize("recorded", ["begin(*given, **named)", "None"])
def test_ctrl_c_before_the_command_has_begun_is_the_end(recorded: str, tmp_path: Path) -> None:
    """Whether it would be recorded or not: nothing is run."""
    code = f"""
import signal, sys, time
from hubmeter import wrapping
begin = wrapping.begin
def beginning(*given, **named):
    print("ready", flush=True)
    while signal.SIGINT not in signal.sigpending():
        time.sleep(0.01)
    return {recorded}
wrapping.begin = beginning
sys.argv = ["hubmeter", *sys.argv[1:]]
from hubmeter.commands.wrapped import run
run()
"""
    ends, said = _in_a_terminal([sys.executable, "-c", code, *sh("touch ran")], b"\x03")

    assert (ends, "".join(said.split())) == (-signal.SIGINT, "ready^C")
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "hubmeter-data").exists()


def test_an_alarm_that_was_set_before_is_for_the_command(tmp_path: Path) -> None:
    """`perl -e 'alarm 3; exec @ARGV' COMMAND` limits its time, also with us in front of it."""
    code = "import os, signal, sys; signal.alarm(3); os.execv(sys.argv[1], sys.argv[1:])"
    ended = subprocess.run(
        [sys.executable, "-c", code, *RUN, *sh("exec sleep 60")], timeout=30, check=False
    )

    assert ended.returncode == -signal.SIGALRM
    assert len(shards(tmp_path / "hubmeter-data")) == 1


def test_ctrl_z_where_nobody_could_continue_it_does_nothing(tmp_path: Path) -> None:
    """As the only job of a terminal, in a container say: the kernel stops neither of us."""
    ends, _ = _in_a_terminal([*RUN, *sh("echo ready; sleep 0.3; exit 4")], b"\x1a")

    assert ends == 4
    assert len(shards(tmp_path / "hubmeter-data")) == 1


def test_a_shell_can_stop_and_continue_it() -> None:
    """Job control: whether the group is stopped or only us, both stop, and both go on."""
    reading, writing = os.pipe()
    command = sh("echo ready; exec sleep 60")
    # A group of its own in our session, as an interactive shell makes it.
    become = "import os, sys; os.setpgid(0, 0); os.execv(sys.argv[1], sys.argv[1:])"
    job = subprocess.Popen(
        [sys.executable, "-c", become, *RUN, *command], stdout=writing, stderr=subprocess.DEVNULL
    )
    os.close(writing)
    assert os.read(reading, 100) == b"ready\n"
    os.close(reading)
    child = int(Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text())
    try:
        for stop in (
            lambda: os.killpg(job.pid, signal.SIGTSTP),
            lambda: os.kill(job.pid, signal.SIGTSTP),
        ):
            stop()
            _eventually(lambda: _state(job.pid) + _state(child) == "TT")
            os.killpg(job.pid, signal.SIGCONT)
            _eventually(lambda: "T" not in _state(job.pid) + _state(child))
            time.sleep(0.2)  # a stop in the moment of going on would be only ours
    finally:
        job.send_signal(signal.SIGTERM)
    assert job.wait(30) == -signal.SIGTERM


@with_gpus
def test_sigterm_ends_the_command_and_publishes(tmp_path: Path) -> None:
    """As `docker stop` does it: by the same signal, within its 10 s, with the last sample."""
    process = start(*sh("echo ready; exec sleep 60"))
    time.sleep(0.5)
    began = time.monotonic()
    process.terminate()
    _, said = process.communicate(timeout=30)

    assert process.returncode == -signal.SIGTERM
    assert time.monotonic() - began < 8
    assert max(column(tmp_path / "hubmeter-data", "energy_joules")) > 40, said.decode()


@with_gpus
def test_a_command_that_does_not_end_is_published_in_the_meantime(tmp_path: Path) -> None:
    """A while after SIGTERM there is what was recorded until then; the rest comes at the end."""
    code = (
        "from hubmeter.commands import wrapped; wrapped.PATIENCE_S = 0.3\n"
        "import sys; sys.argv = ['hubmeter', *sys.argv[1:]]; wrapped.run()"
    )
    script = "trap '' TERM; echo ready; sleep 2.5; exit 6"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *sh(script)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    process.terminate()
    _eventually(lambda: len(shards(tmp_path / "hubmeter-data")) == 1)
    assert process.poll() is None
    process.communicate(timeout=30)

    assert process.returncode == 6
    assert len(shards(tmp_path / "hubmeter-data")) == 2
    energy = column(tmp_path / "hubmeter-data", "energy_joules")
    assert max(energy) > 200
    assert len(set(column(tmp_path / "hubmeter-data", "run_id"))) == 1


# -- what is recorded


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@with_gpus
def test_a_python_agent_and_the_gpus_are_one_run(protocol: str, tmp_path: Path) -> None:
    """An SDK that knows nothing of us: each of its points is there once, beside the GPUs' rows."""
    environment = {**os.environ}
    if protocol == "grpc":
        environment["OTEL_EXPORTER_OTLP_PROTOCOL"] = "grpc"
    ended = run(*PYTHON_AGENT, protocol, before=("--run-id", "r1"), env=environment)

    assert ended.returncode == 0, ended.stderr.decode()
    assert ended.stdout == b"".join(b"step %d\n" % step for step in range(5))
    _assert_run(tmp_path, "r1")
    names = column(tmp_path / "hubmeter-data", "metric_name", "points")
    assert names.count("hubmeter.span.duration") == 1
    said = ended.stderr.decode()
    assert "run r1 · python · " in said
    assert "total: 2 GPUs, " in said
    assert said.splitlines()[-1].startswith(f"hubmeter: run r1 is in {tmp_path}/hubmeter-data: ")


@pytest.mark.parametrize("form", ["http", "proto"])
@with_gpus
def test_a_node_agent_and_the_gpus_are_one_run(form: str, tmp_path: Path) -> None:
    """The same from JavaScript, as JSON and as protobuf."""
    environment = {**os.environ, "NODE_PATH": str(modules())}
    command = ("node", str(AGENTS / "node/agent.js"), form)
    ended = run(*command, before=("--run-id", "r1"), env=environment)

    assert ended.returncode == 0, ended.stderr.decode()
    assert ended.stdout == b"".join(b"step %d\n" % step for step in range(5))
    _assert_run(tmp_path, "r1")


def _assert_run(folder: Path, run_id: str) -> None:
    data = folder / "hubmeter-data"
    assert len(shards(data)) == 1
    assert set(column(data, "run_id")) == {run_id}
    assert {"0", "1"} <= set(column(data, "gpu_id"))
    names = column(data, "metric_name", "points")
    values = column(data, "value", "points")
    steps = [value for name, value in zip(names, values, strict=True) if name == "agent.steps"]
    assert sorted(steps) == [1, 2, 3, 4, 5, 5]
    assert set(column(data, "run_id", "points")) == {run_id}


@with_gpus
def test_an_agent_under_auto_instrumentation_is_recorded(tmp_path: Path) -> None:
    """`hubmeter run -- opentelemetry-instrument python ...`, and a provider that nobody made."""
    code = (
        "from opentelemetry import metrics\n"
        "metrics.get_meter('agent').create_counter('agent.steps').add(7)\n"
    )
    instrument = str(Path(sys.executable).with_name("opentelemetry-instrument"))
    # The libraries that could be instrumented load for seconds, and are not what is tested.
    environment = {**os.environ, "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "*"}
    ended = run(instrument, sys.executable, "-c", code, env=environment)

    assert ended.returncode == 0, ended.stderr.decode()
    data = tmp_path / "hubmeter-data"
    assert {"0", "1"} <= set(column(data, "gpu_id"))
    assert "opentelemetry-instrument" in column(data, "service_name")
    names = column(data, "metric_name", "points")
    values = column(data, "value", "points")
    assert [v for n, v in zip(names, values, strict=True) if n == "agent.steps"] == [7]


@with_gpus
def test_a_child_that_uses_hubmeter_adds_to_the_run(tmp_path: Path) -> None:
    """It publishes for itself, under the same run, and does not meter the GPUs again."""
    code = (
        "from hubmeter import gpu_meter_provider\n"
        "provider = gpu_meter_provider()\n"
        "provider.get_meter('agent').create_counter('agent.steps').add(7)\n"
        "provider.shutdown()\n"
    )
    run(sys.executable, "-c", code, before=("--gpus", "0", "--to", "./elsewhere"))

    data = tmp_path / "elsewhere"
    assert len(shards(data)) == 2
    assert len(set(column(data, "run_id")) | set(column(data, "run_id", "points"))) == 1
    gpu_rows = [gpu for gpu in column(data, "gpu_id") if gpu is not None]
    times = column(data, "timestamp_unix_nano")
    assert set(gpu_rows) == {"0"}
    assert "agent.steps" in column(data, "metric_name", "points")
    assert len(times) == len(set(times))


@with_gpus
def test_a_run_that_the_environment_names_has_one_name(tmp_path: Path) -> None:
    """OTEL_RESOURCE_ATTRIBUTES counts for the GPUs too, before --run-id, which one line says."""
    named = {"OTEL_RESOURCE_ATTRIBUTES": "run.id=r9,service.name=search"}
    ended = run("true", before=("--run-id", "r1"), env={**os.environ, **named})

    assert set(column(tmp_path / "hubmeter-data", "run_id")) == {"r9"}
    assert set(column(tmp_path / "hubmeter-data", "service_name")) == {"search"}
    assert ended.stderr.startswith(b"hubmeter: the run is r9, as OTEL_RESOURCE_ATTRIBUTES says\n")


def test_what_a_process_that_was_left_behind_sends_does_not_hold_us_up(tmp_path: Path) -> None:
    """The run ends with the command, even if another process has a request under way."""
    script = (
        "port=${OTEL_EXPORTER_OTLP_ENDPOINT##*:}; "
        f'{sys.executable} -c "import socket, sys, time; '
        "s = socket.create_connection(('127.0.0.1', int(sys.argv[1]))); "
        "s.sendall(b'POST /v1/metrics HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: 9\\r\\n\\r\\n'); "
        "print('ready', flush=True); time.sleep(20)\" $port >ready & "
        "until [ -s ready ]; do sleep 0.02; done; exec >&-; echo ready >&2"
    )
    process = subprocess.Popen(
        [*RUN, *sh(script)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stderr is not None
    try:
        assert process.stderr.readline() == b"ready\n"
        began = time.monotonic()
        assert process.wait(20) == 0
        assert time.monotonic() - began < 4
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.stderr.close()
    assert len(shards(tmp_path / "hubmeter-data")) == 1


@with_gpus
def test_a_kill_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    """After SIGKILL of ours the command goes on, and `hubmeter recover` publishes what we had."""
    script = f"{' '.join(PYTHON_AGENT)} http >agent.log && sleep 1 && echo ready; sleep 30"
    process = start(*sh(script))
    process.kill()
    assert process.wait() == -signal.SIGKILL
    os.killpg(process.pid, signal.SIGKILL)  # the command goes on without us
    process.communicate()
    assert not (tmp_path / "hubmeter-data").exists()
    subprocess.run([*HUBMETER, "recover"], check=True, capture_output=True, timeout=60)

    [run_id] = set(column(tmp_path / "hubmeter-data", "run_id"))
    _assert_run(tmp_path, run_id)


def test_a_request_that_comes_again_after_a_part_counts_once(tmp_path: Path) -> None:
    """Its answer was lost, and what it brought was published meanwhile."""
    body = json.dumps(request(gauge(POWER, "W", point(5.0, T0, gpu=0))))
    code = f"""
import os, pathlib, time, urllib.request
address = os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] + "/v1/metrics"
sent = urllib.request.Request(address, {body.encode()!r}, {{"Content-Type": "application/json"}})
urllib.request.urlopen(sent)
while not list(pathlib.Path("hubmeter-data").glob("data/default/*/*.parquet")):
    time.sleep(0.1)
urllib.request.urlopen(sent)
"""
    environment = {**os.environ, "HUBMETER_GPUS": "none", "HUBMETER_FLUSH_EVERY": "1"}
    ended = run(sys.executable, "-c", code, env=environment)

    assert ended.returncode == 0, ended.stderr
    assert column(tmp_path / "hubmeter-data", "gpu_power_watts") == [5.0]


# -- where something is missing


@with_gpus
def test_without_a_journal_folder_it_is_in_memory(tmp_path: Path) -> None:
    """One line says so, and the command's SDK is not told to come again."""
    environment = {**os.environ, "HUBMETER_JOURNAL_DIR": "/proc/hubmeter", "HUBMETER_RUN_ID": "r1"}
    ended = run(*PYTHON_AGENT, "http", env=environment)

    first, *others = ended.stderr.decode().splitlines()
    assert first.startswith("hubmeter: no journal, the run is in memory until it is published: ")
    assert "Transient error" not in ended.stderr.decode()
    assert others[-1].startswith("hubmeter: run r1 is in ")
    _assert_run(tmp_path, "r1")


def test_a_destination_that_refuses_does_not_change_the_exit_code(tmp_path: Path) -> None:
    """One line, which says how what is in the journal gets published."""
    (tmp_path / "hubmeter-data").write_text("in the way")
    ended = run(*sh("exit 3"), before=("-q",))

    assert (ended.returncode, ended.stdout) == (3, b"")
    [line] = ended.stderr.decode().splitlines()
    assert line.startswith("hubmeter: ")
    assert "Nothing is lost, the run is in the journal: hubmeter recover" in line


def test_quiet_says_nothing_if_all_is_well(tmp_path: Path) -> None:
    """Also not that there is no GPU."""
    ended = run(*sh("exit 3"), before=("--quiet",))

    assert (ended.returncode, ended.stdout, ended.stderr) == (3, b"", b"")
    assert len(shards(tmp_path / "hubmeter-data")) == 1


def test_a_hub_that_is_slow_is_left_to_a_process(tmp_path: Path) -> None:
    """When the time is over we end as the command did, and the run is published later."""
    from loopback_hub import Fault

    with LoopbackHub() as hub:
        hub.faults.append(Fault(on="create", status=503, times=2))
        environment = {**os.environ, **hub.environment(tmp_path / "home")}
        began = time.monotonic()
        ended = run(
            *sh("exit 3"), before=("--to", "me/run-metrics", "--timeout", "0"), env=environment
        )

        assert ended.returncode == 3
        assert time.monotonic() - began < 10
        assert ended.stdout == b""
        assert "hubmeter recover" in ended.stderr.decode().splitlines()[-1]
        _eventually(lambda: hub.repo("me/run-metrics") and hub.repo("me/run-metrics").commits)
        assert len(hub.repo("me/run-metrics").commits) == 1
        assert hub.errors == []


@with_gpus
def test_without_time_to_publish_the_last_sample_is_kept(tmp_path: Path) -> None:
    """A process publishes it later, with the GPUs of a command that took no time."""
    ended = run(*sh("true"), before=("--timeout", "0"))

    assert ended.returncode == 0
    assert "is missing" not in ended.stderr.decode()
    _eventually(lambda: shards(tmp_path / "hubmeter-data"))
    assert set(column(tmp_path / "hubmeter-data", "gpu_id")) == {"0", "1"}


def _in_a_terminal(command: list[str], typed: bytes) -> tuple[int, str]:
    """
    Run *command* in a terminal of its own, type when it is ready; its exit code and output.

    HANG_UP closes the terminal instead.
    """
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", TAKE_TERMINAL, *command],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    said = b""
    for piece in _pieces(ours):
        if b"ready" not in said and b"ready" in said + piece:
            if typed is HANG_UP:
                break
            os.write(ours, typed)
        said += piece
    os.close(ours)
    return process.wait(30), said.decode()


def _pieces(terminal: int) -> Iterator[bytes]:
    while True:
        try:
            piece = os.read(terminal, 10_000)
        except OSError:  # all processes have left it
            return
        if not piece:
            return
        yield piece


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _eventually(happens: Any) -> None:
    deadline = time.monotonic() + 20
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.02)
