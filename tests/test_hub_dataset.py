"""The sink for a repository on the Hub: its card, its visibility, its commits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import yaml
from huggingface_hub import close_session

from hubmeter.card import card_text
from hubmeter.deadline import Deadline
from hubmeter.errors import PublishError, PublishRejected, PublishUnavailable
from hubmeter.hub import asking
from hubmeter.shard import Shard
from hubmeter.sinks.hub_dataset import HubDataset
from loopback_hub import Fault, LoopbackHub, Repo, RequestInfo

X = "me/x"
UPLOAD = ["preupload", "batch", "put", "verify"]
PERSONS = b"---\nlicense: mit\npretty_name: Mine\n---\n# My runs\n\nDo not lose this.\n"


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of at most 20 ms."""
    monkeypatch.setattr(asking, "LONGEST_PAUSE_S", 0.02)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with LoopbackHub() as hub:
        monkeypatch.setenv("HF_TOKEN", hub.token)
        yield hub
    close_session()
    assert hub.errors == []


def shard(name: str, *configs: str, run_id: str = "", rows: int = 3) -> Shard:
    """A shard with one small file for each of *configs*."""
    contents = {
        f"data/{config}/2026-01/{name}.parquet": f"PAR1 {config} {name}".encode()
        for config in configs or ("default",)
    }
    return Shard(name=name, run_id=run_id or name, files=contents, rows=rows, points=0)


def sink(hub: LoopbackHub, repo: str = X, **options: Any) -> HubDataset:
    return HubDataset(repo, endpoint=hub.url, **options)


def publish(to: HubDataset, *shards: Shard, seconds: float = 10.0) -> None:
    to.publish(shards, Deadline.after(seconds))


def refused(to: HubDataset, *shards: Shard, seconds: float = 10.0) -> PublishError:
    with pytest.raises(PublishError) as caught:
        publish(to, *shards, seconds=seconds)
    return caught.value


def kinds(hub: LoopbackHub) -> list[str]:
    """The kinds of all requests since the last call."""
    made = [request.kind for request in hub.requests]
    hub.requests.clear()
    return made


def x(hub: LoopbackHub) -> Repo:
    repo = hub.repo(X)
    assert repo is not None
    return repo


def files(hub: LoopbackHub) -> dict[str, bytes]:
    """Files of me/x, without the one that the Hub makes."""
    return {path: data for path, data in x(hub).files.items() if path != ".gitattributes"}


def declared(repo: Repo) -> dict[str, list[dict[str, str]]]:
    """Config name to data files, as the card says."""
    header = yaml.safe_load(repo.files["README.md"].decode().split("---\n")[1])
    return {config["config_name"]: config["data_files"] for config in header["configs"]}


def pattern(config: str) -> list[dict[str, str]]:
    return [{"split": "train", "path": f"data/{config}/*/*.parquet"}]


# One run


def test_only_a_card_follows_a_certain_head(hub: LoopbackHub) -> None:
    """It was merged with the one there. Shards alone are committed whatever the head is."""
    for name, configs in (("a", ["default"]), ("b", ["points"])):
        to = sink(hub)
        for one in ("1", "2"):
            publish(to, shard(name + one, *configs))
        publish(sink(hub), shard(name + "3", *configs))
    commits = x(hub).commits
    have_card = ["README.md" in commit.paths for commit in commits]
    assert have_card == [True, False, False] * 2
    assert [commit.wanted_parent for commit in commits] == [
        commit.parent if has_card else None
        for commit, has_card in zip(commits, have_card, strict=True)
    ]


def test_a_new_repository_in_one_commit_and_seven_requests(hub: LoopbackHub) -> None:
    """Private, with a card for the configs that have files."""
    publish(sink(hub), shard("a"))
    assert kinds(hub) == ["create", "info", *UPLOAD, "commit"]
    assert len(x(hub).commits) == 1
    assert x(hub).private
    assert declared(x(hub)) == {"default": pattern("default")}
    assert files(hub) == {"README.md": files(hub)["README.md"], **shard("a").files}


def test_later_parts_of_a_run_take_five_requests(hub: LoopbackHub) -> None:
    """The repository and its card are known by then."""
    to = sink(hub)
    publish(to, shard("a"))
    kinds(hub)
    publish(to, shard("b"))
    assert kinds(hub) == [*UPLOAD, "commit"]
    assert x(hub).commits[-1].paths == tuple(shard("b").files)


def test_the_next_run_leaves_the_card_alone(hub: LoopbackHub) -> None:
    """The metadata of the card says enough: it is not even read."""
    publish(sink(hub), shard("a"))
    kinds(hub)
    publish(sink(hub), shard("b"))
    assert kinds(hub) == ["create", "info", *UPLOAD, "commit"]
    assert x(hub).commits[-1].paths == tuple(shard("b").files)


def test_the_same_shards_again_change_nothing(hub: LoopbackHub) -> None:
    """From the same process or another one."""
    to = sink(hub)
    for target in (to, to, sink(hub)):
        publish(target, shard("a", "default", "points"))
    assert len(x(hub).commits) == 1


def test_nothing_to_publish(hub: LoopbackHub) -> None:
    """No shards, or none with a file: no request, no repository."""
    publish(sink(hub))
    publish(sink(hub), Shard(name="a", run_id="a", files={}, rows=0, points=0))
    assert kinds(hub) == []


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        ([shard("a", rows=917)], "Add 1 shard of run a (917 rows)"),
        ([shard("a", run_id="r"), shard("b", run_id="r")], "Add 2 shards of run r (6 rows)"),
        ([shard("a"), shard("b"), shard("c")], "Add 3 shards of 3 runs (9 rows)"),
        ([shard("a", run_id="\x1b[1m\ud800")], "Add 1 shard of run ?[1m? (3 rows)"),
        ([shard("a", run_id="r" * 99)], f"Add 1 shard of run {'r' * 39}… (3 rows)"),
    ],
)
def test_the_message_counts(hub: LoopbackHub, shards: list[Shard], message: str) -> None:
    """Shards, runs and rows; whatever a run is called."""
    publish(sink(hub), *shards)
    assert x(hub).commits[0].message == message


def test_its_name(hub: LoopbackHub) -> None:
    """As a person would open it; the user is filled in when it is known."""
    to = sink(hub, "{user}/of-{user}")
    assert str(to) == "hf://datasets/{user}/of-{user}"
    publish(to, shard("a"))
    assert kinds(hub)[0] == "whoami"
    publish(to, shard("b"))
    assert "whoami" not in kinds(hub)
    assert str(to) == "hf://datasets/me/of-me"
    assert hub.repo("me/of-me") is not None


@pytest.mark.parametrize("name", ["x", "a/b/c"])
def test_a_name_without_an_owner(hub: LoopbackHub, name: str) -> None:
    """Refused before a request."""
    assert "user/name" in str(refused(sink(hub, name), shard("a")))
    assert kinds(hub) == []


# Who sees it


def test_public_if_asked_for(hub: LoopbackHub) -> None:
    """A new repository is public only on request."""
    publish(sink(hub, is_private=False), shard("a"))
    assert not x(hub).private


def test_a_public_repository_is_refused(hub: LoopbackHub) -> None:
    """Not one byte of the run is sent, and the sentence says how to mean it."""
    hub.create(X, private=False)
    error = refused(sink(hub), shard("a"))
    assert isinstance(error, PublishRejected)
    assert "me/x is public: set HUBMETER_PRIVATE=0" in str(error)
    assert kinds(hub) == ["create", "info"]
    publish(sink(hub, is_private=False), shard("a"))
    assert len(x(hub).commits) == 1


def test_a_private_repository_stays_private(hub: LoopbackHub) -> None:
    """Also when a public one would have been made."""
    hub.create(X)
    publish(sink(hub, is_private=False), shard("a"))
    assert x(hub).private


def test_a_token_for_one_repository_only(hub: LoopbackHub) -> None:
    """It may not create, but the repository is there: published."""
    hub.create(X)
    hub.faults.append(Fault(on="create", status=403, error="no rights for the namespace"))
    publish(sink(hub), shard("a"))
    assert len(x(hub).commits) == 1


def test_a_token_that_may_nothing(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read-only: refused with words, with a repository and without."""
    monkeypatch.setenv("HF_TOKEN", hub.read_token)
    assert "don't have the rights to create" in str(refused(sink(hub), shard("a")))
    hub.create(X)
    error = refused(sink(hub), shard("a"))
    assert "403" in str(error)
    assert "write access" in str(error)


def test_the_namespace_of_others(hub: LoopbackHub) -> None:
    """Named in the sentence."""
    error = refused(sink(hub, "somebody/x"), shard("a"))
    assert isinstance(error, PublishRejected)
    assert str(error).startswith("somebody/x: the token may not do this (403")


# The card


def test_what_a_person_wrote_is_kept(hub: LoopbackHub) -> None:
    """Text and metadata, byte for byte, around ours."""
    hub.create(X, files={"README.md": PERSONS, "notes.txt": b"hello"})
    publish(sink(hub), shard("a"))
    card = x(hub).files["README.md"]
    assert b"license: mit\npretty_name: Mine\n" in card
    assert card.endswith(b"# My runs\n\nDo not lose this.\n")
    assert declared(x(hub)) == {"default": pattern("default")}
    assert x(hub).files["notes.txt"] == b"hello"
    assert len(x(hub).commits) == 1


@pytest.mark.parametrize(
    "card",
    [
        b"no metadata\n",
        b"---\n: [\n---\nbroken\n",
        b"---\nconfigs: 7\n---\nseven\n",
        b"---\nconfigs: [7, {config_name: 8}]\n---\nmore\n",
    ],
)
def test_a_card_of_any_kind_is_mended(hub: LoopbackHub, card: bytes) -> None:
    """Without metadata, with broken ones: text is kept, readers find the files."""
    hub.create(X, files={"README.md": card})
    publish(sink(hub), shard("a"))
    after = x(hub).files["README.md"]
    assert b"path: data/default/*/*.parquet" in after
    assert card.splitlines()[-1] in after


def test_a_card_that_is_no_text(hub: LoopbackHub) -> None:
    """Not in UTF-8: a sentence, and the card as it was."""
    hub.create(X, files={"README.md": b"l\xe9gende\n"})
    assert "README.md is not UTF-8" in str(refused(sink(hub), shard("a")))
    assert files(hub) == {"README.md": b"l\xe9gende\n"}


def test_a_config_is_declared_when_it_has_files(hub: LoopbackHub) -> None:
    """The first points change the card; what was declared stays, also for later default rows."""
    to = sink(hub)
    publish(to, shard("a"))
    publish(to, shard("b", "points"))
    both = {"default": pattern("default"), "points": pattern("points")}
    assert declared(x(hub)) == both
    head = x(hub).commits[-1]
    assert head.paths == ("README.md", *shard("b", "points").files)
    publish(to, shard("c", "default", "points"))
    publish(sink(hub), shard("d"))
    assert declared(x(hub)) == both
    assert [len(commit.paths) for commit in x(hub).commits] == [2, 2, 2, 1]


def test_a_config_declared_otherwise_is_mended(hub: LoopbackHub) -> None:
    """A card whose default config means other files would hide ours."""
    other = card_text(X, configs=["default"]).replace("data/default/*/*", "train/*")
    hub.create(X, files={"README.md": other.encode()})
    publish(sink(hub), shard("a"))
    assert declared(x(hub)) == {"default": pattern("default")}


def test_a_card_that_changes_while_it_is_merged(hub: LoopbackHub) -> None:
    """Somebody writes it between our reading and our commit: read again, both are kept."""
    repo = hub.create(X, files={"README.md": PERSONS})

    def plan(request: RequestInfo) -> Fault | None:
        if request.kind == "commit" and len(repo.commits) < 1:
            publish_as_person(hub, PERSONS + b"\nOne more line.\n")
        return None

    hub.fault_plan = plan
    publish(sink(hub), shard("a"))
    assert b"One more line." in repo.files["README.md"]
    assert declared(repo) == {"default": pattern("default")}
    assert len(repo.commits) == 2


def publish_as_person(hub: LoopbackHub, card: bytes) -> None:
    """A commit by hand, past the server's queue."""
    from loopback_hub.repositories import Blob, Change

    x(hub).commit(Change(message="by hand", added={"README.md": Blob(card)}))


@pytest.mark.parametrize("number", range(8))
def test_two_writers_of_a_fresh_repository(hub: LoopbackHub, number: int) -> None:
    """One with points, one without, at the same moment: all files, both declared."""
    hub.delay_s = 0.002 * number
    start = threading.Barrier(2)

    def write(config: str) -> None:
        start.wait()
        publish(sink(hub), shard(config, config))

    run_together([partial(write, config) for config in ("default", "points")])
    assert set(declared(x(hub))) == {"default", "points"}
    assert len(files(hub)) == 3


def run_together(calls: list[Callable[[], None]]) -> None:
    """Each in a thread; the first exception is raised here."""
    with ThreadPoolExecutor(len(calls)) as pool:
        for future in [pool.submit(call) for call in calls]:
            future.result()


@pytest.mark.parametrize("is_busy_409", [True, False])
def test_many_writers(hub: LoopbackHub, is_busy_409: bool) -> None:
    """Ten at once, whether the Hub queues or refuses: ten shards."""
    hub.is_busy_409 = is_busy_409
    hub.busy_commit_s = 0.02
    run_together([partial(publish, sink(hub), shard(f"s{n}")) for n in range(10)])
    assert len(files(hub)) == 11


def test_a_commit_that_another_one_overtakes(hub: LoopbackHub) -> None:
    """A dying process and a recovery bring one shard at once: at most twice, its rows once."""
    publish(sink(hub), shard("a"))
    is_on_its_way = threading.Event()

    def plan(request: RequestInfo) -> Fault | None:
        if request.kind != "commit" or is_on_its_way.is_set():
            return None
        is_on_its_way.set()
        return Fault(delay_s=0.5)

    hub.fault_plan = plan
    dying = threading.Thread(target=publish, args=(sink(hub), shard("b")))
    dying.start()
    assert is_on_its_way.wait(10)
    publish(sink(hub), shard("b"))
    dying.join()
    assert set(files(hub)) == {"README.md", *shard("a").files, *shard("b").files}
    later = [commit.paths for commit in x(hub).commits[1:]]
    assert later in ([tuple(shard("b").files)], [tuple(shard("b").files)] * 2)


# Faults


@pytest.mark.parametrize("stage", ["create", "info", *UPLOAD, "commit"])
@pytest.mark.parametrize(
    "fault",
    [
        {"status": 429},
        {"status": 503, "headers": {"Retry-After": "0"}},
        {"drop_before": True},
        {"drop_after": True},
        {"status": 500, "acts": True},
    ],
    ids=str,
)
def test_a_fault_in_a_first_publication(
    hub: LoopbackHub, stage: str, fault: dict[str, Any]
) -> None:
    """At whichever request, also when only the answer is lost: one commit, private, complete."""
    hub.faults.append(Fault(on=stage, **fault))
    publish(sink(hub), shard("a", "default", "points"))
    assert len(x(hub).commits) == 1
    assert x(hub).private
    assert set(declared(x(hub))) == {"default", "points"}
    assert len(files(hub)) == 3


@pytest.mark.parametrize("stage", ["whoami", "create", "info", "commit"])
def test_a_hub_that_hangs(hub: LoopbackHub, stage: str) -> None:
    """Given up in time."""
    hub.faults.append(Fault(on=stage, times=99, hang=True))
    error = refused(sink(hub, "{user}/x"), shard("a"), seconds=0.3)
    assert isinstance(error, PublishUnavailable)


def test_a_card_that_landed_but_was_refused(hub: LoopbackHub) -> None:
    """412 for a commit that is there: read again, found complete, not committed again."""
    hub.faults.append(Fault(on="commit", status=412, acts=True))
    publish(sink(hub), shard("a"))
    assert len(x(hub).commits) == 1
    assert declared(x(hub)) == {"default": pattern("default")}


def test_a_busy_name(hub: LoopbackHub) -> None:
    """Another repository is being made for the user: asked again, with pauses."""
    words = "Cannot create repo: another conflicting operation is in progress"
    hub.faults.append(Fault(on="create", times=3, status=409, error=words))
    publish(sink(hub), shard("a"))
    assert kinds(hub).count("create") == 4
    assert len(x(hub).commits) == 1


def test_a_name_that_is_taken_by_what_cannot_be_seen(hub: LoopbackHub) -> None:
    """The Hub says it exists, and that it does not: refused, no loop."""
    hub.faults.append(Fault(on="create", status=409, error="You already created this repo"))
    error = refused(sink(hub), shard("a"))
    assert "no such repository or namespace, or the token cannot see it (404" in str(error)


def test_a_repository_that_is_deleted_between_two_parts(hub: LoopbackHub) -> None:
    """It is made again, with its card; once."""
    to = sink(hub)
    publish(to, shard("a"))
    del hub._endpoints.repositories._repos[X]
    publish(to, shard("b"))
    assert declared(x(hub)) == {"default": pattern("default")}
    assert len(files(hub)) == 2
    hub.faults.append(Fault(on="preupload", times=9, status=404))
    kinds(hub)
    assert isinstance(refused(to, shard("c")), PublishRejected)
    assert kinds(hub).count("preupload") == 2


# Many shards


@pytest.mark.parametrize("pooled", [True, False])
def test_many_shards_in_few_commits(hub: LoopbackHub, pooled: bool) -> None:
    """At most 100 files in each, the card in the first, shards never torn."""
    shards = [shard(f"s{n:03}", "default", "points") for n in range(60)]
    publish(sink(hub, pooled=pooled), *shards)
    assert [len(commit.paths) for commit in x(hub).commits] == [99, 22]
    assert x(hub).commits[0].paths[0] == "README.md"
    assert len(files(hub)) == 121
    assert [commit.message for commit in x(hub).commits] == [
        "Add 49 shards of 49 runs (147 rows)",
        "Add 11 shards of 11 runs (33 rows)",
    ]


def test_the_second_half_after_a_failure(hub: LoopbackHub) -> None:
    """The first commit landed: the repetition adds the rest only."""
    shards = [shard(f"s{n:03}") for n in range(110)]
    hub.faults.append(Fault(on="commit", after=1, status=403))
    to = sink(hub, pooled=True)
    refused(to, *shards)
    publish(to, *shards)
    assert [len(commit.paths) for commit in x(hub).commits] == [100, 11]
    assert len(files(hub)) == 111
