"""Every data point is accounted for: received = stored + published + rejected, everywhere."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hubmeter.batch import PointBatch, SeriesLayout
from hubmeter.deadline import Deadline
from hubmeter.decode.otlp_json import JsonDecoder
from hubmeter.errors import JournalError, PublishError
from hubmeter.pipeline import Counts, Pipeline
from hubmeter.receipts import read_receipts, receipt_text
from hubmeter.recovery import recover
from hubmeter.settings import load_settings
from makers import POWER, SECOND, T0, TEMP, UTIL, gauge, point, request
from observed import undisturbed  # noqa: F401
from orphans import contents, hubmeter, kill, metadata, rows

CELLS = ("gpu_power_watts", "gpu_utilization_percent", "gpu_temperature_celsius")

Kept = Literal["other", "all", "none"]

VALUES = st.floats(0, 1e6) | st.sampled_from(["NaN", "Infinity", "oops", None])
POINTS = st.tuples(
    st.sampled_from([POWER, UTIL, TEMP, "my.gauge", "my.histogram"]),
    st.integers(0, 4),  # the time; 0 is none
    st.sampled_from(["0", "1"]),  # the GPU
    st.sampled_from([None, "twin"]),  # an attribute that makes another series
    VALUES,
)
BATCHES = st.lists(st.lists(POINTS, max_size=6), max_size=6)


def soon() -> Deadline:
    return Deadline.after(30)


def batch_of(points: Sequence[tuple[Any, ...]]) -> PointBatch:
    """The batch that a decoder makes of *points*."""
    return JsonDecoder().decode(request(*(metric(*one) for one in points)))


def metric(name: str, time: int, gpu: str, twin: str | None, value: Any) -> dict[str, Any]:
    """A metric with one point."""
    at = T0 + time * SECOND if time else 0
    one = point(1.0, at, gpu=gpu, **({"twin": twin} if twin else {}))
    if name == "my.histogram":
        counts = {"count": "1", "sum": 1.0, "bucketCounts": ["1"], "explicitBounds": []}
        histogram = {key: one[key] for key in ("timeUnixNano", "attributes")} | counts
        data = {"dataPoints": [histogram], "aggregationTemporality": 2}
        return {"name": name, "unit": "1", "histogram": data}
    del one["asDouble"]
    one |= {"flags": 1} if value is None else {"asDouble": value}
    return gauge(name, {POWER: "W", UTIL: "%", TEMP: "Cel"}.get(name, "1"), one)


def in_tables(files: dict[str, bytes], kept: Kept) -> int:
    """How many points can be counted in what was published."""
    cells = sum(row[name] is not None for row in rows(files) for name in CELLS)
    others = len(rows(files, "points"))
    return {"other": cells + others, "all": others, "none": cells}[kept]


def check(folder: Path, received: int, kept: Kept) -> Counts:
    """What the shards in *folder*/data and the receipts say is what was received."""
    said = metadata(files := contents(folder / "data"))
    sums = {
        name: sum(int(one[f"points_{name}"]) for one in said)
        for name in ("received", "stored", "published", "rejected")
    }
    assert sums["received"] == sums["published"] + sums["rejected"]
    assert sums["stored"] == 0
    for one in said:
        assert sum(json.loads(one["rejected"]).values()) == int(one["points_rejected"])
    assert sums["published"] == in_tables(files, kept)
    receipts = read_receipts(folder / "journal")
    for one in receipts:
        assert one.received == one.published + sum(one.rejected.values())
    assert sum(one.received for one in receipts) == sums["received"]
    assert sum(one.published for one in receipts) == sums["published"]
    assert sums["received"] == received
    return Counts(**sums)


@settings(max_examples=40)
@given(BATCHES, st.sampled_from(["other", "all", "none"]), st.sets(st.integers(0, 5)))
@example([[(POWER, 1, "0", None, 1.0)], [(POWER, 1, "0", None, 2.0)]], "other", set())
@example([[(POWER, 1, "0", None, 1.0), (POWER, 1, "0", "twin", 2.0)]], "none", {0})
@example([[(POWER, 1, "0", None, 1.0)], [(POWER, 1, "0", None, 2.0)]], "all", set())
@example([[("my.histogram", 0, "0", None, 1.0)]], "all", {0})
def test_what_is_said_is_what_can_be_counted(
    batches: list[list[tuple[Any, ...]]], kept: Kept, cuts: set[int]
) -> None:
    """Any points in any parts, some late: counts, metadata, receipts and tables agree."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        pipeline = Pipeline(
            load_settings(to=str(folder / "data"), journal_dir=str(folder / "journal"), points=kept)
        )
        sent = 0
        for number, batch in enumerate(batches):
            if batch:
                pipeline.consume(batch_of(batch))
            sent += len(batch)
            if number in cuts:
                pipeline.publish_part()
            counts = pipeline.counts()
            assert counts.received == sent
            assert counts.received == counts.stored + counts.published + counts.rejected
        pipeline.close(soon())

        counts = pipeline.counts()
        assert (counts.received, counts.stored) == (sent, 0)
        shards = metadata(contents(folder / "data"))
        # A part that is in no table has no shard either: only counts() knows of it.
        unsaid = sent - sum(int(one["points_received"]) for one in shards)
        found = check(folder, sent - unsaid, kept)
        assert (counts.published, counts.rejected) == (found.published, found.rejected + unsaid)


def pipeline_in(folder: Path, **options: Any) -> Pipeline:
    return Pipeline(
        load_settings(to=str(folder / "data"), journal_dir=str(folder / "journal"), **options)
    )


def test_each_reason_is_named(tmp_path: Path) -> None:
    """Points sent twice, without a time, that cannot be decoded, and that nobody wants."""
    pipeline = pipeline_in(tmp_path, points="none")
    power = (POWER, 1, "0", None, 1.0)
    pipeline.consume(batch_of([power, (POWER, 0, "1", None, 1.0)]))
    pipeline.consume(batch_of([power, (UTIL, 1, "0", None, "oops"), ("my.gauge", 1, "0", None, 1)]))
    pipeline.close(soon())

    [said] = metadata(contents(tmp_path / "data"))
    reasons = json.loads(said["rejected"])
    assert (said["points_received"], said["points_published"], said["points_rejected"]) == (
        "5",
        "1",
        "4",
    )
    assert len(reasons) == 4
    assert set(reasons.values()) == {1}
    assert any("twice" in why for why in reasons)
    assert any("timestamp" in why for why in reasons)
    assert any("HUBMETER_POINTS=none" in why for why in reasons)
    assert pipeline.counts() == Counts(received=5, stored=0, published=1, rejected=4)


def test_a_run_of_broken_points_only_still_accounts_for_them(tmp_path: Path) -> None:
    """Its one row says that there was a run; the metadata say what came."""
    pipeline = pipeline_in(tmp_path)
    pipeline.consume(batch_of([(POWER, 1, "0", None, "oops")] * 3))
    pipeline.close(soon())

    assert pipeline.counts() == Counts(received=3, stored=0, published=0, rejected=3)
    assert len(rows(contents(tmp_path / "data"))) == 1
    check(tmp_path, 3, "other")


def test_an_export_after_the_end_is_counted_once(tmp_path: Path) -> None:
    """Whoever comes late makes a shard of its own."""
    pipeline = pipeline_in(tmp_path)
    for time in (1, 2, 3):
        pipeline.consume(batch_of([(POWER, time, "0", None, 1.0)]))
        pipeline.close(soon())
    assert pipeline.counts() == Counts(received=3, stored=0, published=3, rejected=0)
    check(tmp_path, 3, "other")


def test_a_destination_that_fails_keeps_points_stored(tmp_path: Path) -> None:
    """Until it takes them; nothing is counted twice."""
    (tmp_path / "data").write_text("in the way")
    pipeline = pipeline_in(tmp_path)
    pipeline.consume(batch_of([(POWER, 1, "0", None, 1.0), (POWER, 1, "0", None, "oops")]))
    for _ in range(2):
        with pytest.raises(PublishError):
            pipeline.close(soon())
        assert pipeline.counts() == Counts(received=2, stored=2, published=0, rejected=0)
    (tmp_path / "data").unlink()
    pipeline.close(soon())
    assert pipeline.counts() == Counts(received=2, stored=0, published=1, rejected=1)
    check(tmp_path, 2, "other")


LONG = "x" * 2000


def wide(second: int) -> PointBatch:
    """About 160 kB: 20,000 values of one layout."""
    times = [T0 + second * SECOND]
    return PointBatch(
        layout=LAYOUT,
        times_unix_nano=times,
        start_times_unix_nano=(),
        values=[float(second)] * len(LAYOUT.series),
    )


def _layout() -> SeriesLayout:
    points = [point(1.0, T0, gpu=0, which=str(number)) for number in range(20_000)]
    return JsonDecoder().decode(request(gauge("my.gauge", "1", *points))).layout


LAYOUT = _layout()


@pytest.mark.parametrize("policy", ["refuse", "drop-oldest"])
def test_refused_and_dropped_points_are_in_the_metadata(policy: str, tmp_path: Path) -> None:
    """A limit of a mebibyte, three times as much data: what is missing is counted."""
    pipeline = pipeline_in(tmp_path, journal_limit_mib=1, journal_full=policy)
    sent = 0
    for second in range(20):
        may_refuse = (
            pytest.raises(JournalError, match="HUBMETER_JOURNAL_LIMIT")
            if policy == "refuse" and pipeline._segment.bytes_stored > 2**20
            else nullcontext()
        )
        with may_refuse:
            pipeline.consume(wide(second))
        sent += len(LAYOUT.series)
        counts = pipeline.counts()
        assert counts.received == sent == counts.stored + counts.published + counts.rejected
    pipeline.close(soon())

    counts = pipeline.counts()
    assert counts.stored == 0
    found = check(tmp_path, sent, "other")
    assert found == counts
    assert 0.2 * sent < counts.rejected < 0.9 * sent
    reasons: Counter[str] = Counter()
    for one in metadata(contents(tmp_path / "data")):
        reasons.update(json.loads(one["rejected"]))
    assert len(reasons) == 1
    assert "the journal was full" in next(iter(reasons))


@pytest.mark.parametrize(("refused", "said"), [(5, (5, 5)), (1_000, (938, 1_000))])
def test_refused_points_of_a_killed_run_are_counted(
    refused: int, said: tuple[int, int], tmp_path: Path
) -> None:
    """Exactly if they are few, else all but a sixteenth; the full journal hardly grows."""
    kill(
        f"""
        agent = begin("./data", "r", journal_limit_mib=1)
        text = [{{"key": "text", "value": {{"stringValue": os.urandom(2**20).hex()}}}}]
        large = power(1.0)
        large["gauge"]["dataPoints"][0]["attributes"] += text
        agent.consume(JsonDecoder().decode(request(large)))
        size = sum(os.path.getsize(f"journal/{{name}}") for name in os.listdir("journal"))
        for second in range(1, {refused} + 1):
            try:
                feed(agent, second, first=second)
            except JournalError:
                continue
            raise AssertionError("not refused")
        grown = sum(os.path.getsize(f"journal/{{name}}") for name in os.listdir("journal")) - size
        assert grown < 20_000, grown
        """,
        tmp_path,
    )
    recover(tmp_path / "journal", say=lambda _: None)

    [found] = metadata(contents(tmp_path / "data"))
    least, most = said
    assert least <= int(found["points_rejected"]) <= most
    assert int(found["points_received"]) == 1 + int(found["points_rejected"])
    assert "the journal was full" in found["rejected"]


def test_a_recovery_counts_as_the_run_would_have(tmp_path: Path) -> None:
    """Duplicates, broken points and parts, killed; recovered, it all adds up."""
    kill(
        """
        parts = begin("./data", "r")
        def send(*values, name="gen_ai.gpu.power"):
            metrics = [power(value, first=1) for value in values]
            parts.consume(JsonDecoder().decode(request(*metrics)))
        send(1.0, "oops"); send(2.0); cut(parts); send(3.0); send(4.0, "oops", "oops")
        """,
        tmp_path,
    )
    result = recover(tmp_path / "journal", say=lambda _: None)

    assert [one.shard.received for one in result.published if one.shard] == [3, 4]
    found = check(tmp_path, 7, "other")
    assert (found.published, found.rejected) == (2, 5)


def test_doctor_says_what_became_of_the_points(tmp_path: Path) -> None:
    """For people and for machines; what waits is named with the command."""
    kill(
        """
        done = begin("./data", "done")
        done.consume(JsonDecoder().decode(request(power(1.0), power("oops"))))
        done.close(soon())
        feed(begin("./data", "waiting"), 1, 2)
        """,
        tmp_path,
    )
    journal = {"HUBMETER_JOURNAL_DIR": "./journal"}
    human = hubmeter("doctor", folder=tmp_path, **journal).stdout
    data = json.loads(hubmeter("doctor", "--format", "json", folder=tmp_path, **journal).stdout)

    [published] = [one["text"] for one in data["findings"] if one["subject"] == "published"]
    assert re.match(
        r"run done: 1 rows in .*; 2 points received = 1 published \+ 1 rejected \(1 x ", published
    )
    assert published in human
    [waits] = [one for one in data["findings"] if "wait" in one["text"].split("(")[0]]
    assert waits["text"] == "1 earlier run waits to be published (waiting)"
    assert waits["advice"] == "hubmeter recover journal"
    assert waits["advice"] in human


def test_a_receipt_adds_up_in_words(tmp_path: Path) -> None:
    """The line that people read has the numbers of the shard."""
    pipeline = pipeline_in(tmp_path, run_id="r")
    pipeline.consume(batch_of([(POWER, 1, "0", None, 1.0), (POWER, 1, "0", None, "oops")]))
    pipeline.close(soon())
    [receipt] = read_receipts(tmp_path / "journal")
    text = receipt_text(receipt)
    received, published, rejected = map(
        int, re.findall(r"(\d+) (?:points|published|rejected)", text)
    )
    assert (received, published, rejected) == (2, 1, 1)
