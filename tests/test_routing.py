"""A batch of many runs becomes one batch for each, and nothing is lost or mixed up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from hubmeter import routing
from hubmeter.batch import Extra, PointBatch, Series, SeriesLayout, attributes_json
from hubmeter.gpus import owner_of
from hubmeter.ledger import pack
from hubmeter.routing import LONGEST_KEY, Router, RunKey
from hubmeter.schema import WINDOW_METRIC

NAN = float("nan")
RESOURCES = [{"run.id": "a"}, {"run.id": "b", "x": 1}, {"run.id": "b"}, {"service.name": "s"}, {}]


def series(resource: Any, metric: str = "m", run_id: str | None = None) -> Series:
    return Series(
        resource=attributes_json(resource), scope_name="t", metric_name=metric, unit="",
        kind="gauge", run_id=run_id,
    )  # fmt: skip


def batch_of(*owners: Series, **about: Any) -> PointBatch:
    values = tuple(float(n) for n in range(len(owners)))
    given_ = {"layout": SeriesLayout(owners), "times_unix_nano": (7,), "values": values, **about}
    return PointBatch(**given_)


def points(batches: Iterable[PointBatch]) -> Counter[Any]:
    """Everything that is said about each point."""
    found: Counter[Any] = Counter()
    for batch in batches:
        for place, (one, value) in enumerate(zip(batch.layout.series, batch.values, strict=True)):
            times, starts = batch.times_unix_nano, batch.start_times_unix_nano
            time = times[0] if len(times) == 1 else times[place]
            start = starts[place] if starts else 0
            found[one, time, start, value, batch.extras.get(place)] += 1
    return found


@st.composite
def batches(draw: Any) -> PointBatch:
    owners = draw(st.lists(st.builds(
        series, st.sampled_from(RESOURCES), st.sampled_from("mn"),
        st.sampled_from([None, None, "envelope"])), max_size=12))  # fmt: skip
    each = st.lists(st.integers(1, 3), min_size=len(owners), max_size=len(owners))
    places = st.integers(0, max(0, len(owners) - 1))
    return batch_of(
        *owners,
        times_unix_nano=draw(each | st.just([5] if owners else [])),
        start_times_unix_nano=tuple(draw(each | st.just([]))),
        extras=draw(st.dictionaries(places, st.builds(Extra, flags=st.integers(1, 3))))
        if owners else {},
        skipped=draw(st.just({}) | st.just({"broken": 2})),
    )  # fmt: skip


@given(batches(), st.sampled_from([None, "given"]))
def test_every_point_goes_to_its_run(batch: PointBatch, run_id: str | None) -> None:
    """Each point once, with its time, start, value and extras, in the order of arrival."""
    parts = list(Router(run_id).split(batch))

    assert points(part for _, part in parts) == points([batch])
    assert len({key for key, _ in parts}) == len(parts)
    for key, part in parts:
        names = {owner_of(one, run_id or "")[0] for one in part.layout.series}
        resources = {one.resource for one in part.layout.series}
        assert names == {key.run_id or ""}
        assert key.run_id or resources == {key.resource}
        pack(part)
        own = [one for one in batch.layout.series if one in set(part.layout.series)]
        assert list(part.layout.series) == own
    skipped = [dict(part.skipped) for _, part in parts]
    assert skipped[:1] == ([dict(batch.skipped)] if parts else [])
    assert not any(skipped[1:])


def test_a_batch_of_one_run_passes_as_it_is() -> None:
    """The usual case costs nothing, and the journal knows the layout already."""
    batch = batch_of(series({"run.id": "a"}, "m"), series({"run.id": "a"}, "n"))
    assert list(Router(None).split(batch)) == [(RunKey("a", None), batch)]
    assert next(Router(None).split(batch))[1] is batch


def test_a_run_keeps_its_layout_whoever_shares_its_requests() -> None:
    """A Collector mixes the sources in each request anew; a journal has each layout once."""
    a, b, c = (series({"run.id": name}) for name in "abc")
    router = Router(None)
    layouts = {
        id(part.layout)
        for owners in ([a, b], [b, a], [a, c], [c, b, a])
        for key, part in router.split(batch_of(*owners))
        if key.run_id == "a"
    }
    assert len(layouts) == 1


def test_points_of_a_run_that_share_their_time_say_it_once() -> None:
    """As a decoder has it: what is one instant takes one block."""
    batch = batch_of(*(series({"run.id": name}, m) for name in "ab" for m in "mn"),
                     times_unix_nano=(1, 1, 2, 3))  # fmt: skip
    assert [list(part.times_unix_nano) for _, part in Router(None).split(batch)] == [[1], [2, 3]]


def test_what_has_no_points_belongs_to_no_run() -> None:
    """An empty request, or one of which nothing could be read."""
    assert list(Router(None).split(batch_of(times_unix_nano=()))) == []
    assert list(Router("r").split(batch_of(times_unix_nano=(), skipped={"bad": 3}))) == []


def test_long_names_stay_apart_and_become_short() -> None:
    """They are in the header of each journal, of which only the beginning is looked at."""
    long = "x" * 100_000
    owners = [series({"run.id": long + "1"}), series({"run.id": long + "2"}),
              series({"y": long + "1"}), series({"y": long + "2"})]  # fmt: skip
    keys = [key for key, _ in Router(None).split(batch_of(*owners))]
    assert len(set(keys)) == 4
    assert all(len(text) <= LONGEST_KEY for key in keys for text in key if text)


def test_layouts_that_never_come_again_are_forgotten(monkeypatch: Any) -> None:
    """A sender whose series keep changing does not fill the memory; the answers stay right."""
    monkeypatch.setattr(routing, "MOST_BYTES", 40_000)
    router = Router(None)
    for n in range(300):
        batch = batch_of(*(series({"run.id": name}, f"m{n}") for name in "ab"))
        assert points(part for _, part in router.split(batch)) == points([batch])
    assert len(router._plans._held) <= 50
    assert len(router._layouts._held) <= 100
    again = batch._replace(values=(3.0, 4.0))
    assert points(part for _, part in router.split(again)) == points([again])


def test_long_texts_are_forgotten_sooner(monkeypatch: Any) -> None:
    """What is remembered has a limit in bytes: a few kilobytes sent may stand for megabytes."""
    monkeypatch.setattr(routing, "MOST_BYTES", 100_000)
    router = Router(None)
    for n in range(50):
        batch = batch_of(*(series({"run.id": name, "a": "x" * 10_000}, f"m{n}") for name in "ab"))
        assert len(list(router.split(batch))) == 2
    assert 0 < len(router._plans._held) <= 5
    assert 0 < len(router._layouts._held) <= 10


def test_windows_are_not_remembered() -> None:
    """The trace of a span is a new one each time, and so is its layout."""
    router = Router(None)
    for names in ("a", "ab"):
        windows = batch_of(*(series({"run.id": name}, WINDOW_METRIC) for name in names))
        assert points(part for _, part in router.split(windows)) == points([windows])
    assert not router._plans._held
    assert not router._layouts._held
