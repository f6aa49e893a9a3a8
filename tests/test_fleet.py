"""The runs of a receiver: kept, bounded, published when they are silent, each point once."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from fleet_runs import (  # noqa: F401
    SOON_S,
    Feeder,
    cut_all,
    end_all,
    fleet_in,
    power,
    publish,
    published,
    quick,
    until,
    visible,
)
from fleet_server import serving
from hubmeter.deadline import Deadline
from hubmeter.errors import SettingsError
from hubmeter.journal import read_journal
from hubmeter.receipts import read_receipts
from hubmeter.resends import DUPLICATE
from makers import (
    COST,
    DELTA,
    ENERGY,
    POWER,
    SECOND,
    T0,
    gauge,
    point,
    request,
    resource_metrics,
    total,
)
from orphans import contents, metadata, watts
from orphans import rows as rows_of


def asked(*parts: dict[str, Any]) -> dict[str, Any]:
    """A request."""
    return {"resourceMetrics": list(parts)}


@examples(max_examples=10)
@given(st.data())
def test_whatever_the_requests_mix_each_run_has_its_points(data: st.DataObject) -> None:
    """Any interleaving, sent twice or not, cut anywhere: each shard has what its run sent."""
    sources = [{"run_id": "a"}, {"run_id": "b"}, {"host_name": "c"}, {"host_name": "d"}]
    picks = st.lists(st.sampled_from(range(4)), min_size=1, max_size=5)
    plan = data.draw(st.lists(st.tuples(picks, st.sampled_from("  =|")), max_size=12))
    expected: Counter[tuple[Any, ...]] = Counter()
    value = 0.0
    with TemporaryDirectory() as name:
        folder = Path(name)
        fleet = fleet_in(folder, most_runs=data.draw(st.sampled_from([1, 3, 10])))
        send = Feeder(fleet)
        for places, after in plan:
            parts = []
            for place in places:
                value += 1
                parts.append(power(value, value, **sources[place]))
                expected[sources[place].get("run_id", place), value] += 1
            send(*parts)
            if after == "=":
                send(*parts)
            elif after == "|":
                cut_all(fleet)
        end_all(fleet)
        publish(folder)
        found = rows_of(contents(folder / "data"))
        unnamed = {"c": 2, "d": 3}
        assert (
            Counter(
                (unnamed.get(row["host_name"], row["run_id"]), row["gpu_power_watts"])
                for row in found
            )
            == expected
        )
        owners = {(row["host_name"], row["run_id"]) for row in found}
        assert len(owners) == len({owner for owner, _ in expected})
        assert visible(folder) == []


@st.composite
def streams(draw: Any) -> list[Any]:
    """
    Requests of one run: readings, counters that restart, what was added; all in the first.

    In quarters, of which a float is sure: a restart is otherwise rounded elsewhere.
    """
    quarters = st.integers(0, 4000).map(lambda n: n / 4)
    made, energy, start = [], 0.0, T0
    for second in range(draw(st.integers(2, 10))):
        time_ = T0 + (second + 1) * SECOND
        energy += draw(quarters)
        if draw(st.integers(0, 4)) == 4:  # the sender restarts
            energy, start = draw(quarters) / 64, time_ - SECOND // 2
        watts_, added = draw(st.floats(1, 700)), draw(quarters)
        others = [
            total(ENERGY, "J", point(energy, time_, gpu=1, start=start)),
            total(COST, "USD", point(energy / 8, time_, gpu=0, start=start)),
            total(ENERGY, "J", point(added, time_, gpu=2, start=time_ - SECOND), temporality=DELTA),
        ]
        sent = [one for one in others if not second or draw(st.booleans())]
        reading = gauge(POWER, "W", point(watts_, time_, gpu=0))
        made.append(request(reading, *sent, resource={"run.id": "r"}))
    return made


@examples(max_examples=12)
@given(streams(), st.data())
def test_parts_are_one_run_to_the_last_bit(requests: list[Any], data: st.DataObject) -> None:
    """Energy, CO2, cost and sums go on over parts that are published one by one, or together."""
    with TemporaryDirectory() as name:
        whole, parts = Path(name, "whole"), Path(name, "parts")
        for folder in (whole, parts):
            fleet = fleet_in(folder)
            for one in requests:
                Feeder(fleet).each([one])
                match data.draw(st.sampled_from(" ||-p")) if folder == parts else " ":
                    case "|":
                        cut_all(fleet)
                    case "-":
                        if one is not requests[-1]:  # it falls silent, and comes back
                            end_all(fleet, is_final=False)
                    case "p":
                        cut_all(fleet)
                        publish(folder)
            end_all(fleet)
            publish(folder)
            assert list(folder.glob("journal/totals/*")) == []
        assert rows_of(contents(parts / "data")) == rows_of(contents(whole / "data"))


def test_silence_ends_and_publishes(tmp_path: Path) -> None:
    """A named run goes on if it comes back; a resource that comes back is another run."""
    fleet = fleet_in(tmp_path, silence_s=0.3)
    send = Feeder(fleet)
    for second in (0, 1, 2):
        send(power(100, second, run_id="named"), power(50, second, host_name="h"))
    until(fleet, published(fleet))
    for second in (3, 4):
        send(power(100, second, run_id="named"), power(50, second, host_name="h"))
    until(fleet, published(fleet))

    found = rows_of(contents(tmp_path / "data"))
    named = [row for row in found if row["run_id"] == "named"]
    others = [row["run_id"] for row in found if row["host_name"] == "h"]
    assert [row["energy_joules"] for row in named] == [0, 100, 200, 300, 400]
    assert len({*others[:3]}) == 1 or len({*others[:2]}) == 1
    assert sorted(Counter(others).values()) == [2, 3]
    assert fleet.status()["points_published"] == 10
    names = sorted(path for path in contents(tmp_path / "data") if "/named-" in path)
    assert re.sub("[0-9a-f]{12}", "P", names[1].rsplit("/", 1)[1]) == "named-P.parquet"
    assert re.sub("[0-9a-f]{12}", "P", names[0].rsplit("/", 1)[1]) == "named-P-1.parquet"
    assert fleet.close(Deadline.after(1))
    assert [receipt.received for receipt in read_receipts(tmp_path / "journal")]


def test_a_run_that_still_speaks_is_not_ended(tmp_path: Path) -> None:
    """However many others fall silent, and also if all it sends was sent before."""
    fleet = fleet_in(tmp_path, silence_s=0.4)
    send = Feeder(fleet)
    send(power(1, 0, run_id="silent"))
    end_s = time.monotonic() + 1.0
    while time.monotonic() < end_s:
        send(power(1, 0, run_id="speaks"))
        fleet.tick()
        time.sleep(0.05)
    assert [key.run_id for key in fleet._open] == ["speaks"]
    assert fleet.close(Deadline.after(SOON_S))


def test_a_request_that_comes_again_counts_once(tmp_path: Path) -> None:
    """In the same part, after a cut, and after a receiver was killed: the answer was lost."""
    first, second = power(1, 0, run_id="r"), power(2, 1, run_id="r")
    with serving(tmp_path, settings={}, tick_s=0) as server:
        requests = [{"resourceMetrics": [first]}, {"resourceMetrics": [second, first]}]
        assert server.ask(1, requests[0]) == "+ 1"
        assert server.ask(2, requests[0]) == "+ 2"
        assert server.ask(3, requests[1]) == "+ 3"
        server.do("[fleet._retire(log.cut()) for log in fleet._open.values()] and 1")
        assert server.ask(4, requests[1]) == "+ 4"
        server.kill()
    with serving(tmp_path, settings={}, tick_s=0) as server:
        assert server.ask(5, requests[1]) == "+ 5"
        assert server.ask(6, requests[0]) == "+ 6"
        assert server.close() == "closed True"

    files = contents(tmp_path / "data")
    assert watts(files) == [1, 2]
    [about] = metadata(files)[:1]
    assert (about["points_received"], about["points_published"]) == ("4", "2")
    assert json.loads(about["rejected"]) == {DUPLICATE: 2}


def test_points_that_come_again_in_other_requests_count_once(tmp_path: Path) -> None:
    """A Collector that was killed batches anew, and in between two parts were published."""
    fleet = fleet_in(tmp_path)
    send = Feeder(fleet)
    seconds = [[power(100.0 + n, n, run_id="r")] for n in range(9)]
    for first in (0, 3):
        for one in seconds[first : first + 3]:
            send(*one)
        cut_all(fleet)
    publish(tmp_path)
    send(*seconds[4], *seconds[5], *seconds[6], *seconds[2])
    send(*seconds[7], *seconds[3], *seconds[8])
    end_all(fleet, is_final=False)
    publish(tmp_path)
    send(*seconds[0], *seconds[8])
    assert fleet.close(Deadline.after(SOON_S))

    found = contents(tmp_path / "data")
    assert watts(found) == [100.0 + n for n in range(9)]
    joules = [row["energy_joules"] for row in rows_of(found)]
    assert joules == sorted(joules)
    counts = sorted((m["points_received"], m["points_published"]) for m in metadata(found))
    assert counts == [("3", "3"), ("3", "3"), ("7", "3")]
    assert len(list(tmp_path.glob("journal/arrivals/*"))) == 4


def test_a_run_that_has_no_gpu_has_one_row(tmp_path: Path) -> None:
    """At its end, however many parts it had; none where an earlier or later part has rows."""
    other = resource_metrics(gauge("my.gauge", "1", point(1.0)), resource={"run.id": "none"})
    fleet = fleet_in(tmp_path)
    send = Feeder(fleet)
    for second in range(3):
        send(other)
        if second == 1:
            send(power(5, 9, run_id="late"))
        else:
            metric = gauge("my.gauge", "1", point(1.0, T0 + second))
            send(resource_metrics(metric, resource={"run.id": "late"}))
        other = resource_metrics(gauge("my.gauge", "1", point(1.0, T0 + 1 + second)),
                                 resource={"run.id": "none"})  # fmt: skip
        cut_all(fleet)
        publish(tmp_path)
    end_all(fleet)
    publish(tmp_path)
    found = rows_of(contents(tmp_path / "data"))
    assert [(row["run_id"], row["gpu_power_watts"]) for row in found] == [
        ("late", 5), ("none", None),
    ]  # fmt: skip
    assert len(rows_of(contents(tmp_path / "data"), "points")) == 5
    assert visible(tmp_path) == []


def test_one_name_for_all_that_name_no_run(tmp_path: Path) -> None:
    """HUBMETER_RUN_ID: one run of many resources, beside those that say what they are."""
    fleet = fleet_in(tmp_path, run_id="mine")
    Feeder(fleet)(power(1, 0, host_name="a"), power(2, 0, host_name="b"), power(3, 0, run_id="x"))
    assert fleet.close(Deadline.after(SOON_S))
    found = rows_of(contents(tmp_path / "data"))
    assert [(row["run_id"], row["gpu_power_watts"]) for row in found] == [
        ("mine", 1), ("mine", 2), ("x", 3),
    ]  # fmt: skip
    assert len(contents(tmp_path / "data")) == 2


def test_what_has_no_run_is_not_kept(tmp_path: Path) -> None:
    """An empty request is acknowledged, and leaves nothing."""
    fleet = fleet_in(tmp_path)
    Feeder(fleet).each([{}, {"resourceMetrics": []}, {"resourceMetrics": [{}]}])
    assert visible(tmp_path) == []
    assert fleet.close(Deadline.after(1))


def test_a_receiver_needs_a_journal(tmp_path: Path) -> None:
    """In memory only, it could acknowledge nothing."""
    with pytest.raises(SettingsError, match="HUBMETER_JOURNAL_DIR"):
        fleet_in(tmp_path, journal_dir="off")


def test_a_receiver_loads_nothing_that_is_heavy() -> None:
    """Sealing is for its child."""
    heavy = "{'numpy', 'pyarrow', 'huggingface_hub', 'datasets', 'opentelemetry'}"
    code = f"import sys, hubmeter.fleet; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_thousands_of_runs_stay_bounded(tmp_path: Path, report_counts: Any) -> None:
    """3000 resources, 200 of them open at a time: files and memory, and each point once."""
    options = {"fleet": {"most_runs": 200}, "tick_s": 0, "settings": {}}
    files, memory, began = [], [], time.monotonic()
    with serving(tmp_path, **options) as server:
        for first in range(0, 3000, 50):
            parts = [power(n, n, service_name=f"s{n}") for n in range(first, first + 50)]
            parts += [power(5000 + first, first, service_name=f"s{first % 7}")]
            assert server.ask(first, {"resourceMetrics": parts}) == f"+ {first}"
            files.append(len(list(Path(f"/proc/{server.process.pid}/fd").iterdir())))
            memory.append(_memory_kib(server.process.pid))
        took_s = time.monotonic() - began
        assert server.do("fleet.status()['runs_open']") == 200
    report_counts(
        f"fleet: 3000 runs in {took_s:.1f} s; at most {max(files)} files; memory "
        f"{memory[9]} -> {memory[-1]} KiB"
    )

    kept = [
        value
        for path in tmp_path.glob("journal/*.journal")
        for packed in read_journal(path).contents.batches
        for value in packed.values
    ]
    assert sorted(kept) == [*range(3000), *range(5000, 8000, 50)]
    assert max(files) < 240
    assert memory[-1] - memory[9] < 25_000


def test_more_runs_than_may_be_open_are_all_published(tmp_path: Path) -> None:
    """A run that had to end comes back as itself, and each shard has what it should."""
    options = {"fleet": {"most_runs": 20}, "tick_s": 0.1, "settings": {},
               "constants": {"FOLDER_EVERY_S": 0.3}, "close_s": 60}  # fmt: skip
    with serving(tmp_path, **options) as server:
        for first in range(0, 150, 50):
            parts = [power(n, n, service_name=f"s{n % 50}") for n in range(first, first + 50)]
            assert server.ask(first, {"resourceMetrics": parts}) == f"+ {first}"
        assert server.close() == "closed True"
    found = rows_of(contents(tmp_path / "data"))
    assert sorted(row["gpu_power_watts"] for row in found) == [*range(150)]
    owners = {row["run_id"]: row["service_name"] for row in found}
    assert len(owners) == 50
    assert sorted(owners.values()) == sorted(f"s{n}" for n in range(50))
    assert visible(tmp_path) == []


def _memory_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1])


def test_more_runs_than_files_are_not_opened(tmp_path: Path) -> None:
    """The limit of the system is raised as far as it goes; then fewer runs are open."""
    code = f"""
import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 128))
from hubmeter.fleet import Fleet; from hubmeter.settings import load_settings
fleet = Fleet(load_settings(journal_dir={str(tmp_path)!r}), most_runs=1000)
print(resource.getrlimit(resource.RLIMIT_NOFILE), fleet._most_runs)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "(128, 128) 64\n"


def test_threads_share_a_fleet(tmp_path: Path) -> None:
    """Both doors deliver at once, while runs are cut, end and are published."""
    fleet = fleet_in(tmp_path, silence_s=0.05, most_runs=3)

    def deliver(first: int) -> None:
        send = Feeder(fleet)
        for value in range(first, first + 30):
            send(power(value, value, run_id=f"r{value % 5}"))

    threads = [threading.Thread(target=deliver, args=(1000 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        cut_all(fleet)
        fleet.tick()
        time.sleep(0.02)
    assert fleet.close(Deadline.after(SOON_S))
    expected = sorted(1000 * n + value for n in range(4) for value in range(30))
    assert sorted(watts(contents(tmp_path / "data"))) == expected


def test_a_named_run_goes_on_in_the_next_receiver(tmp_path: Path) -> None:
    """
    A receiver that is ended and started again counts on, and knows what it had kept.
    """
    first = fleet_in(tmp_path)
    send = Feeder(first)
    for second in (0, 10, 20):
        send(power(100, second, run_id="named"), power(50, second, host_name="unnamed"))
    assert first.close(Deadline.after(SOON_S))
    following = fleet_in(tmp_path)
    send = Feeder(following)
    for second in (20, 30, 40):  # the answer to the first of these was lost
        send(power(100, second, run_id="named"))
    assert following.close(Deadline.after(SOON_S))

    found = rows_of(contents(tmp_path / "data"))
    rows = [row for row in found if row["run_id"] == "named"]
    assert [row["gpu_power_watts"] for row in rows] == [100.0] * 5
    assert sorted(row["energy_joules"] for row in rows) == [0, 1000, 2000, 3000, 4000]
    assert len(list((tmp_path / "journal" / "resting").iterdir())) == 1


@pytest.mark.parametrize("between", ["silent", "closed", "open"])
def test_a_named_run_goes_on_whenever_a_receiver_is_killed(between: str, tmp_path: Path) -> None:
    """
    After its silence, before it came back, or while it spoke: its sums go on, each point is once.
    """
    options: dict[str, Any] = {"settings": {}, "tick_s": 0.05, "fleet": {"silence_s": 0.3}}
    with serving(tmp_path, **options) as server:
        for second in (0, 10, 20):
            assert server.ask(second, asked(power(100, second, run_id="named")))[0] == "+"
        deadline = Deadline.after(SOON_S)
        while between == "silent" and server.do("fleet.status()['runs_open']"):
            assert not deadline.is_over()
            time.sleep(0.05)
        if between == "closed":
            assert server.close() == "closed True"
    for answered in range(2):
        with serving(tmp_path, **options) as server:
            for second in (20, 30, 40) if answered else ():  # the answer to the first was lost
                assert server.ask(second, asked(power(100, second, run_id="named")))[0] == "+"
            if answered:
                assert server.close() == "closed True"

    rows = rows_of(contents(tmp_path / "data"))
    assert [row["energy_joules"] for row in rows] == [0, 1000, 2000, 3000, 4000]


def test_named_runs_go_on_in_a_receiver_that_opens_fewer(tmp_path: Path) -> None:
    """
    Those beyond its number rest until they come back.
    """
    for most_runs in (9, 1):
        options: dict[str, Any] = {"settings": {}, "tick_s": 0, "fleet": {"most_runs": most_runs}}
        with serving(tmp_path, **options) as server:
            for second in (0, 10, 20) if most_runs == 9 else (30, 40):
                parts = [power(100, second, run_id=name) for name in "ab"]
                assert server.ask(second, asked(*parts))[0] == "+"
            if most_runs == 1:
                assert server.close() == "closed True"

    found = rows_of(contents(tmp_path / "data"))
    for name in "ab":
        joules = [row["energy_joules"] for row in found if row["run_id"] == name]
        assert joules == [0, 1000, 2000, 3000, 4000]


def test_what_rests_is_not_begun_twice(tmp_path: Path) -> None:
    """
    Killed just as it began the next part: what was published of that is not written over.
    """
    fleet = fleet_in(tmp_path)
    Feeder(fleet)(power(1, 1, run_id="r"))
    end_all(fleet, is_final=False)
    [noted] = (tmp_path / "journal" / "resting").iterdir()
    before = noted.read_bytes()
    Feeder(fleet)(power(2, 2, run_id="r"))
    assert not noted.exists()
    noted.write_bytes(before)
    end_all(fleet)
    publish(tmp_path)
    noted.write_bytes(before)
    Feeder(fleet)(power(3, 3, run_id="r"))
    assert fleet.close(Deadline.after(SOON_S))
    assert sorted(watts(contents(tmp_path / "data"))) == [1, 2, 3]


def test_a_run_that_a_killed_receiver_was_about_to_end_does_not_rest(tmp_path: Path) -> None:
    """
    It goes on with its open part: what was noted would soon be of the past.
    """
    with serving(tmp_path, settings={}, tick_s=0) as server:
        assert server.ask(1, asked(power(100, 0, run_id="r")))[0] == "+"
        server.do("[log.rest(log.part + 1, {}) for log in fleet._open.values()] and 1")
    with serving(tmp_path, settings={}, tick_s=0) as server:
        assert list((tmp_path / "journal" / "resting").iterdir()) == []
        assert server.ask(2, asked(power(100, 10, run_id="r")))[0] == "+"
        assert server.close() == "closed True"
    rows = rows_of(contents(tmp_path / "data"))
    assert [row["energy_joules"] for row in rows] == [0, 1000]


def test_a_resource_that_rests_too_long_is_another_run(tmp_path: Path) -> None:
    """
    It had to make room, and its silence goes on meanwhile.
    """
    fleet = fleet_in(tmp_path, most_runs=1, silence_s=0.3)
    send = Feeder(fleet)
    for second, pause_s in ((1, 0.0), (2, 0.4), (3, 0.0)):
        send(power(second, second, host_name="h"), power(second, second, host_name="other"))
        time.sleep(pause_s)
    assert fleet.close(Deadline.after(SOON_S))
    found = [row for row in rows_of(contents(tmp_path / "data")) if row["host_name"] == "h"]
    runs = {row["gpu_power_watts"]: row["run_id"] for row in found}
    assert runs[1] == runs[2] != runs[3]
