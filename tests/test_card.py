"""The card: generated from the contract, around what a person wrote."""

import re

import pytest
import yaml

from hubmeter.card import END, START, card_text
from hubmeter.schema import CONFIGS

BOTH = ["default", "points"]


def header(text: str) -> dict:
    """The YAML of a card."""
    return yaml.safe_load(
        re.match(r"\A\ufeff?---\r?\n(.*?)^---", text, re.DOTALL | re.MULTILINE)[1]
    )


def test_a_new_card_describes_every_column() -> None:
    """The tables name all columns of both configs with type, unit and meaning."""
    text = card_text("data", configs=BOTH)

    for columns in CONFIGS.values():
        for column in columns:
            assert f"| `{column.name}` | {column.type} | {column.unit} |" in text
            assert column.meaning in text


def test_a_new_card_names_the_files_of_each_config() -> None:
    """Explicit configs: nobody has to guess splits from file names."""
    known = header(card_text("data", configs=BOTH))

    assert [config["config_name"] for config in known["configs"]] == BOTH
    assert [config.get("default") for config in known["configs"]] == [True, None]
    for config in known["configs"]:
        path = f"data/{config['config_name']}/*/*.parquet"
        assert config["data_files"] == [{"split": "train", "path": path}]
    assert "gpu-metrics" in known["tags"]


def test_only_configs_with_files_are_named() -> None:
    """A config without a file could not be opened; it goes when its files go."""
    text = card_text("data", configs=["default"], existing=card_text("data", configs=BOTH))

    assert [config["config_name"] for config in header(text)["configs"]] == ["default"]


def test_the_same_contents_give_the_same_card() -> None:
    """Writing again changes nothing, and other contents change the card."""
    text = card_text("data", configs=BOTH, contents="1 files, aa")

    assert card_text("data", configs=BOTH, contents="1 files, aa", existing=text) == text
    assert card_text("data", configs=BOTH, contents="2 files, bb", existing=text) != text
    assert card_text("data", configs=BOTH).count(START) == 1


MINE = """---
# my comment
license: apache-2.0   # mine
tags: [a, b]
configs:
- config_name: other
  data_files: other/*.parquet
  default: true
- config_name: points
  drop_labels: true
  data_files: old
pretty_name: "Ours: all of it"
date: 2025-01-02
---
# My runs

    indented

Text with {braces} and ---

---

more
"""


def test_what_a_person_wrote_is_kept_to_the_letter() -> None:
    """Comments, order, quotes and text survive; only our configs and our section change."""
    text = card_text("data", configs=BOTH, contents="x", existing=MINE)

    head, body = MINE.split("---\n", 2)[1:]
    before, after = head.split("configs:\n")[0], head[head.index("pretty_name") :]
    assert text.startswith(f"---\n{before}configs:\n")
    assert f"{after}---\n" in text
    assert text.endswith(body)
    assert text.count(START) == text.count(END) == 1


def test_configs_of_others_stay_but_ours_is_the_default() -> None:
    """Two default configs would make the dataset unreadable."""
    default, points, other = header(card_text("data", configs=BOTH, existing=MINE))["configs"]

    assert default["default"] is True
    assert points["drop_labels"] is True
    assert points["data_files"][0]["path"] == "data/points/*/*.parquet"
    assert other == {"config_name": "other", "data_files": "other/*.parquet"}


EXISTING = {
    "empty": "",
    "text only": "# Mine\n\nwords\n",
    "empty header": "---\n---\nwords\n",
    "comment only": "---\n# comment\n---\nwords\n",
    "windows": "---\r\nlicense: mit\r\nconfigs:\r\n- config_name: x\r\n---\r\nwords\r\n",
    "byte order mark": "\ufeff---\nlicense: mit\n---\nwords\n",
    "no end of line": "---\nlicense: mit\n---",
    "broken header": "---\ntags: [a\nlicense: mit\n---\nwords\n",
    "header is text": "---\nA title\n---\nwords\n",
    "impossible date": "---\ndate: 2025-02-31\n---\nwords\n",
    "duplicate dashes": "---\nlicense: mit\n---\n---\nwords\n",
    "flow": "---\nconfigs: [{config_name: x,\n  data_files: y}]\nlicense: mit\n---\nwords\n",
    "flow at the edge": "---\nconfigs: [\n{config_name: x}\n]\nlicense: mit\n---\nwords\n",
    "comment in configs": "---\nconfigs:\n# why\n- config_name: x\nlicense: mit\n---\nwords\n",
    "quoted key": "---\n'configs': []\nlicense: mit\n---\nwords\n",
    "configs are null": "---\nconfigs:\nlicense: mit\n---\nwords\n",
    "configs are text": "---\nconfigs: none\n---\nwords\n",
    "configs of text": "---\nconfigs: [a, b]\n---\nwords\n",
    "block text": "---\ndescription: |\n  configs:\n  - nothing\nlicense: mit\n---\nwords\n",
    "only a start": f"{START}\nwords\n",
    "only an end": f"words\n{END}\n",
    "end before start": f"{END}\nwords\n{START}\n",
    "twice": f"a\n{START}\nold\n{END}\nb\n{START}\nold\n{END}\nwords\n",
    "other bytes": "---\nlicense: mit\n---\nwords \udcff\udce9\n",
    "other bytes in the header": "---\nauthor: J\udce9r\n---\nwords\n",
}


@pytest.mark.parametrize("existing", EXISTING.values(), ids=EXISTING)
def test_any_existing_card_becomes_a_readable_one(existing: str) -> None:
    """The result has valid YAML with our configs, every word that was there, and is stable."""
    text = card_text("data", configs=BOTH, contents="x", existing=existing)

    known = header(text)
    assert [config["config_name"] for config in known["configs"]][:2] == BOTH
    assert re.search(r"^configs:", text, re.MULTILINE)
    for word in ("words", "license: mit", "A title", "2025-02-31", "\udce9", "# comment"):
        assert (word in existing) <= (word in text)
    if "license: mit" in existing and "broken" not in existing and "tags: [a" not in existing:
        assert known["license"] == "mit"
    assert START in text
    assert card_text("data", configs=BOTH, contents="x", existing=text) == text


@pytest.mark.parametrize("name", ['x"); import os', "a`b", "```", "a\nb", "<script>", "\udcff"])
def test_a_name_cannot_break_out_of_the_card(name: str) -> None:
    """The name of a folder is text, whatever characters it has."""
    [line] = [one for one in card_text(name, configs=BOTH).splitlines() if "rows = " in one]

    assert re.fullmatch(r'rows = load_dataset\("[\w./~ -]*", split="train"\)\s+#.*', line)
