"""Settings: where values come from, and what happens to wrong ones."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from hubmeter.settings import (
    SETTINGS,
    Setting,
    Settings,
    fill_in_date,
    fill_in_run,
    load_settings,
    new_run_id,
    safe_name,
)
from observed import undisturbed  # noqa: F401


def default_of(setting: Setting) -> Any:
    return setting.default() if callable(setting.default) else setting.default


def test_without_anything_there_are_defaults() -> None:
    """Each setting has the default of its description, and says so."""
    loaded = load_settings()

    for setting in SETTINGS:
        assert getattr(loaded, setting.name) == default_of(setting)
        if setting.name != "journal_dir":  # without settings there is no journal
            assert getattr(Settings(), setting.name) == setting.default
        assert loaded.origins[setting.name] == "default"
    assert loaded.problems == ()


def test_argument_before_environment_before_file_before_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each level wins over those after it, and the origin tells which one it was."""
    seen = [load_settings()]
    (tmp_path / "hubmeter.toml").write_text("pue = 1.25\n")
    seen.append(load_settings())
    monkeypatch.setenv("HUBMETER_PUE", "1.5")
    seen.append(load_settings())
    seen.append(load_settings(pue=2))

    assert [loaded.pue for loaded in seen] == [1.0, 1.25, 1.5, 2.0]
    assert [loaded.origins["pue"] for loaded in seen] == [
        "default", "file pue", "HUBMETER_PUE", "argument pue",
    ]  # fmt: skip


def test_an_argument_that_is_none_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """None and an empty variable stand for "whatever the next level says"."""
    monkeypatch.setenv("HUBMETER_TO", "elsewhere")
    monkeypatch.setenv("HUBMETER_MISSING", "")
    loaded = load_settings(to=None)

    assert loaded.to == "elsewhere"
    assert loaded.origins["missing"] == "default"
    assert loaded.problems == ()


def test_variables_of_others_serve_where_ours_are_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Factors that genai_otel and codecarbon know are taken over, after our own."""
    monkeypatch.setenv("GENAI_POWER_COST_PER_KWH", "0.3")
    monkeypatch.setenv("CODECARBON_FORCE_CARBON_INTENSITY_G_CO2E_KWH", "50")
    loaded = load_settings()
    assert (loaded.price_usd_per_kwh, loaded.carbon_g_per_kwh) == (0.3, 50.0)
    assert loaded.origins["price_usd_per_kwh"] == "GENAI_POWER_COST_PER_KWH"

    monkeypatch.setenv("HUBMETER_PRICE_KWH", "0.2")
    assert load_settings().price_usd_per_kwh == 0.2


def test_each_setting_has_a_variable_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A good value in the variable of a setting becomes its value."""
    good = {
        "to": "d", "run_id": "r", "missing": "zero", "points": "all", "gpus": "0,2",
        "sample_interval_s": 0.5, "price_usd_per_kwh": 1.0, "carbon_g_per_kwh": 0.0,
        "pue": 1.1, "disabled": True, "private": False, "journal_dir": "j",
        "journal_limit_mib": 5.0, "journal_full": "drop-oldest", "fsync": True,
        "flush_every_s": 60.0, "signals": False, "sentinel": True, "self_metrics": True,
        "serve_http": "[::1]:80", "serve_grpc": "localhost:0", "serve_cert": "c",
        "serve_key": "k", "serve_client_ca": "a", "serve_limit_mib": 1.0, "serve_silence_s": 9.0,
        "serve_runs": 7.0,
    }  # fmt: skip
    for name, value in good.items():
        [setting] = [setting for setting in SETTINGS if setting.name == name]
        monkeypatch.setenv(setting.variable, str(value))
    monkeypatch.setenv("HUBMETER_SERVE_TOKEN", "a-token-of-the-receiver")
    loaded = load_settings()
    good["serve_token"] = loaded.serve_token
    assert loaded.serve_token is not None
    assert loaded.serve_token.reveal() == "a-token-of-the-receiver"

    assert {setting.name: getattr(loaded, setting.name) for setting in SETTINGS} == good
    assert loaded.problems == ()


WRONG: list[tuple[str, Any]] = [
    ("missing", "nothing"), ("points", "some"), ("pue", "0.9"), ("pue", "nan"), ("pue", "1,2"),
    ("price_usd_per_kwh", "-1"), ("carbon_g_per_kwh", "1e9"), ("sample_interval_s", "0"),
    ("sample_interval_s", "inf"), ("disabled", "perhaps"), ("to", "   "),
    ("to", "s3://bucket"), ("to", "hf://datasets/u"),
    ("to", "me/x-{dat}"), ("to", "me/x-{date"), ("to", "me/x-date}"), ("to", "runs/{}"),
    ("to", "{{user}}/x"), ("to", "./{user name}"), ("to", "hf://datasets/{name}/x"),
    ("to", "https://huggingface.co/datasets/me/x"), ("to", "https://huggingface.co/me/x"),
    ("to", "/data/{user}"), ("to", "./{user}/x"), ("to", "~/{user}"), ("to", "{user}/a/b"),
    ("to", "{user}"), ("to", "me/{user}-x"), ("to", "{user}/my runs"), ("to", "{user}/"),
    ("run_id", "a\nb"), ("gpus", "\t"), ("journal_dir", "hf://d"),
    ("private", "so-so"),
    ("flush_every_s", "0.5"), ("flush_every_s", "soon"), ("journal_full", "drop"),
    ("journal_limit_mib", "0"), ("fsync", "2"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text"), WRONG)
def test_a_wrong_variable_is_one_problem_and_the_default(
    name: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The problem names the variable, the value and what would be right."""
    [setting] = [setting for setting in SETTINGS if setting.name == name]
    monkeypatch.setenv(setting.variable, text)
    loaded = load_settings()

    assert getattr(loaded, name) == default_of(setting)
    assert loaded.origins[name] == "default"
    [problem] = loaded.problems
    assert problem.startswith(f"{setting.variable}={text!r} is ignored: expected ")


@pytest.mark.parametrize(
    "to",
    [
        "me/x", "me/x-{date}-{run_id}", "{user}/x", "{user}/{run_id}", "{user}/{date}-{user}",
        "org/of-{user}", "hf://datasets/{user}/x-{date}", "hf://datasets/org/{user}/",
        "./{date}/{run_id}", "/data/{run_id}", "~/{date}", "https:", "a$b",
    ],
)  # fmt: skip
def test_a_destination_with_what_is_filled_in(to: str) -> None:
    """{date} and {run_id} may be anywhere, {user} in the name of a repository."""
    assert (load_settings(to=to).to, load_settings(to=to).problems) == (to, ())


@pytest.mark.parametrize(
    "page",
    [
        "https://huggingface.co/datasets/me/x",
        "https://huggingface.co/datasets/me/x/",
        "https://huggingface.co/datasets/me/x/tree/main/data?not=this",
        "http://127.0.0.1:8000/datasets/me/x#readme",
    ],
)
def test_the_address_of_a_page_is_corrected(page: str) -> None:
    """What one pastes from a browser: the problem has the value that is right."""
    [problem] = load_settings(to=page).problems
    assert "expected hf://datasets/me/x, not the address of its page; " in problem
    assert load_settings(to="hf://datasets/me/x").problems == ()


def test_a_token_in_an_address_is_not_repeated() -> None:
    """Wherever in the address it is."""
    for page in ("https://me:hf_abcdefghijk@huggingface.co/datasets/me/x",
                 "https://huggingface.co/datasets/hf_abcdefghijk/x"):  # fmt: skip
        [problem] = load_settings(to=page).problems
        assert "hf_abc" not in problem


def test_a_variable_in_another_encoding_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run id that no Parquet file can hold is refused before the run, not after it."""
    monkeypatch.setitem(os.environ, "HUBMETER_RUN_ID", "\udcff")
    loaded = load_settings()

    assert loaded.run_id is None
    assert len(loaded.problems) == 1


@pytest.mark.parametrize("value", [print, {}, b"x", {"a": 1}, [None], len], ids=repr)
def test_an_argument_of_a_wrong_type_is_one_problem(value: Any) -> None:
    """Its repr does not become the name of a folder."""
    loaded = load_settings(to=value)

    assert loaded.to == "./hubmeter-data"
    [problem] = loaded.problems
    assert "expected text or a number; instead: " in problem


def test_arguments_may_have_the_types_that_one_expects() -> None:
    """Paths, numbers, truth values and lists are as good as their text."""
    loaded = load_settings(to=Path("a") / "b", pue=2, disabled=False, gpus=[0, 2], run_id=7)

    assert (loaded.to, loaded.pue, loaded.disabled) == (str(Path("a") / "b"), 2.0, False)
    assert (loaded.gpus, loaded.run_id) == ("0,2", "7")
    assert loaded.problems == ()


def test_a_wrong_argument_leaves_the_word_to_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The next level counts, and each wrong value is reported."""
    monkeypatch.setenv("HUBMETER_PUE", "1.5")
    loaded = load_settings(pue="much", missing="no")

    assert loaded.pue == 1.5
    assert loaded.missing == "null"
    assert len(loaded.problems) == 2


def test_unknown_arguments_are_one_problem() -> None:
    """However many there are, in one line, sorted, without their values."""
    [problem] = load_settings(token="secret", repo="r").problems

    assert problem == "not a setting, ignored in arguments: repo, token"


def test_a_project_s_file_has_a_section_for_us(tmp_path: Path) -> None:
    """`[tool.hubmeter]` counts where there is no hubmeter.toml; other sections do not matter."""
    project = tmp_path / "pyproject.toml"
    project.write_text("[tool.other]\nto = 'x'\n[tool.hubmeter]\nto = 'ours'\ndisabled = true\n")
    assert load_settings().to == "ours"
    assert load_settings().disabled is True

    (tmp_path / "hubmeter.toml").write_text("to = 'first'\ngpus = [0, 2]\n")
    loaded = load_settings()
    assert (loaded.to, loaded.gpus, loaded.disabled) == ("first", "0,2", False)
    assert loaded.problems == ()


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("to = ", 1),
        ("tо = 'a cyrillic letter'", 1),
        ("too = 'a typing mistake'\nmising = 'zero'", 1),
        ("pue = 'much'", 1),
        ("[to]\nnested = 1", 1),
        ("", 0),
        ("# nothing", 0),
    ],
)
def test_a_wrong_file_is_a_problem_and_the_defaults(
    tmp_path: Path, text: str, problems: int
) -> None:
    """A file that cannot be used, or in part, never stops a program."""
    (tmp_path / "hubmeter.toml").write_text(text)
    loaded = load_settings()

    assert len(loaded.problems) == problems
    assert set(loaded.origins.values()) == {"default"}


@pytest.mark.parametrize("name", ["hubmeter.toml", "pyproject.toml"])
def test_files_that_are_no_toml_at_all(tmp_path: Path, name: str) -> None:
    """Folders and binary files of that name are not settings."""
    (tmp_path / name).write_bytes(b"\xff\xfe\x00")
    assert load_settings().origins["to"] == "default"
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    assert load_settings().problems == ()


@pytest.mark.parametrize("text", ["tool = 1", "[tool]\nhubmeter = 1", "tool.hubmeter.to = 'x'"])
def test_a_project_s_file_in_an_unusual_shape(tmp_path: Path, text: str) -> None:
    """Whatever `tool` is, reading it does not raise."""
    (tmp_path / "pyproject.toml").write_text(text)
    assert load_settings().to == ("x" if "to =" in text else "./hubmeter-data")


def test_a_run_without_an_id_gets_a_new_one() -> None:
    """Each time another one; a configured one stays."""
    assert new_run_id(Settings()) != new_run_id(Settings())
    assert new_run_id(Settings(run_id="r")) == "r"


def test_placeholders_in_a_destination() -> None:
    """Date and run id are filled in, the run id as a name that stays in its folder."""
    filled = fill_in_run(fill_in_date("runs/{date}/{run_id}"), "../x")
    runs, date, run_id = filled.split("/")

    assert (runs, len(date)) == ("runs", 15)
    assert run_id == safe_name("../x")


def test_names_are_safe_and_stay_different() -> None:
    """Whatever a text contains, its name is one file that all readers see."""
    texts = [
        "", ".", "..", "a", "A", "a/b", "a_b", "a b", "/a", "_a", ".a", "-a", "a" * 300,
        "a" * 301, "\0", "ü", "\udcff", "a\\b", "con:", "a\n", "a" * 96, "a" * 97,
    ]  # fmt: skip
    names = [safe_name(text) for text in texts]

    assert len(set(names)) == len(texts)
    for name in names:
        assert name
        assert name.isascii()
        assert len(name) <= 110
        assert not set(name) & set("/\\:\0\n *?=")
        assert name[0] not in "._-"
    assert safe_name("2025-10-27.run_1") == "2025-10-27.run_1"


def test_a_secret_is_never_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Neither the settings as text, nor a pickle, nor a problem with a bad token shows it.
    """
    monkeypatch.setenv("HUBMETER_SERVE_TOKEN", "correct-horse")
    loaded = load_settings()
    assert "correct-horse" not in f"{loaded!r} {loaded.serve_token}"
    with pytest.raises(TypeError):
        pickle.dumps(loaded.serve_token)

    monkeypatch.setenv("HUBMETER_SERVE_TOKEN", "not a token")
    [problem] = load_settings().problems
    assert "HUBMETER_SERVE_TOKEN=(hidden) is ignored" in problem
    assert "not a token" not in problem


@pytest.mark.parametrize("text", ["4318", ":4318", "host", "host:99999", "::1:80", "http://x:80"])
def test_what_is_no_address_is_a_problem(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A door needs a host and a port.
    """
    monkeypatch.setenv("HUBMETER_SERVE_HTTP", text)
    loaded = load_settings()

    assert loaded.serve_http == "127.0.0.1:4318"
    assert "expected host:port" in loaded.problems[0]
