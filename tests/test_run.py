"""A run as plain values: what the header of a journal says, and what it means years later."""

from __future__ import annotations

import json
import math
import pickle
from contextlib import suppress
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubmeter.energy import Factors
from hubmeter.errors import DecodeError
from hubmeter.run import Run, absolute, as_json, begin_run, factors_of, from_json, working_folder
from hubmeter.settings import load_settings
from observed import undisturbed  # noqa: F401

KINDS = {
    "str": st.text(max_size=20),
    "bool": st.booleans(),
    "int": st.integers(0, 2**64),
    "float": st.floats(allow_nan=False),
}
RUNS = st.builds(Run, **{field.name: KINDS[str(field.type)] for field in fields(Run)})
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(RUNS)
def test_a_run_survives_json(run: Run) -> None:
    """To the last bit, also what is not finite."""
    assert from_json(json.loads(json.dumps(as_json(run)))) == run


@given(RUNS, st.sampled_from([field.name for field in fields(Run)]), ANYTHING)
def test_a_header_is_right_or_refused(run: Run, name: str, value: Any) -> None:
    """Any value in any place: a run whose fields have their types, or a clear error."""
    with suppress(DecodeError):
        found = from_json({**as_json(run), name: value})
        assert isinstance(getattr(found, name), (type(getattr(run, name)), int))
        assert replace(found, **{name: getattr(run, name)}) == run


@given(ANYTHING)
def test_anything_else_is_refused(value: Any) -> None:
    """Whatever a damaged header holds."""
    with pytest.raises(DecodeError):
        from_json(value)


def test_other_versions_are_understood() -> None:
    """What a newer one adds is ignored; what an older one lacked has its default."""
    old = {"run_id": "r", "process_id": "p", "started_unix_nano": 1, "to": "me/x", "base": "/"}
    assert from_json({**old, "new": [1]}) == from_json(old)
    assert from_json(old).private
    with pytest.raises(DecodeError, match="process_id"):
        from_json({name: value for name, value in old.items() if name != "process_id"})


def test_a_run_has_all_that_its_shards_need(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings that change after a crash must not change the rows; the token is not among them."""
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
    monkeypatch.setenv("HUBMETER_CARBON_INTENSITY", "300")
    monkeypatch.setenv("GENAI_POWER_COST_PER_KWH", "0.3")
    settings = load_settings(
        to="me/{run_id}-{date}", pue=1.5, private=False, points="all", missing="zero", run_id="r"
    )
    run = begin_run(settings, 5)

    assert (run.run_id, run.started_unix_nano, run.private) == ("r", 5, False)
    assert (run.points, run.missing) == ("all", "zero")
    assert run.to.startswith("me/{run_id}-20")
    assert (run.carbon_source, run.price_source) == (
        "HUBMETER_CARBON_INTENSITY",
        "GENAI_POWER_COST_PER_KWH",
    )
    assert factors_of(run) == factors_of(settings) == Factors(
        carbon_g_per_kwh=300, price_usd_per_kwh=0.3, pue=1.5
    )  # fmt: skip
    assert "hf_secret" not in json.dumps(asdict(run)) + repr(run)
    assert b"hf_secret" not in pickle.dumps(run)
    assert begin_run(settings, 5).process_id != run.process_id
    assert len(run.process_id) == 12


def test_each_run_without_a_name_has_its_own() -> None:
    """A UUID, new each time."""
    settings = load_settings()
    assert begin_run(settings, 0).run_id != begin_run(settings, 0).run_id


def test_a_working_folder_that_is_gone_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program may sit in a folder that somebody removed."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    assert working_folder() == str(gone)
    gone.rmdir()
    assert working_folder() == ""
    assert begin_run(load_settings(), 0).base == ""
    assert absolute("/data", "") == Path("/data")


def test_numbers_of_a_header_may_be_integers() -> None:
    """JSON of others writes 475 for 475.0; text is no number."""
    run = begin_run(load_settings(), 0)
    assert from_json({**as_json(run), "pue": 2}).pue == 2
    assert math.isinf(from_json(json.loads(json.dumps({**as_json(run), "pue": math.inf}))).pue)
    for wrong in ("2", None, [2]):
        with pytest.raises(DecodeError, match="pue"):
            from_json({**as_json(run), "pue": wrong})
