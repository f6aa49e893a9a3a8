"""The loopback Hub answers the real clients as the sheet of the protocol says."""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import ANY
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    HfFileSystem,
    close_session,
    hf_hub_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from interpreters import ARE_REQUIRED, hub_overlays
from loopback_hub import Fault, LoopbackHub, RequestInfo

# huggingface_hub 1.x gives httpx the bytes of an LFS object by a name that httpx deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

TransportError = HfHubHTTPError.__mro__[1]
"""What a dropped connection raises, httpx's or httpx2's."""

CARD = b"""---
license: cc0-1.0
configs:
- config_name: default
  data_files: [{split: train, path: data/**/*.parquet}]
  default: true
- config_name: points
  data_files: [{split: train, path: points/**/*.parquet}]
---
# A run
"""

X = "me/x"

FIRST_COMMIT = ["create", "validate", "preupload", "batch", "put", "verify", "commit"]


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        yield hub
    close_session()
    assert hub.errors == []


@pytest.fixture
def api(hub: LoopbackHub) -> HfApi:
    return HfApi(endpoint=hub.url, token=hub.token)


def parquet(*numbers: int) -> bytes:
    """A Parquet file with one column, `n`."""
    file = io.BytesIO()
    pq.write_table(pa.table({"n": numbers}), file)
    return file.getvalue()


SHARD, POINTS = parquet(1, 2, 3), parquet(7)


def commit(api: HfApi, files: Mapping[str, bytes], **options: Any) -> CommitInfo:
    """Commit *files* to me/x as the Hub sink does."""
    adds = [CommitOperationAdd(path, io.BytesIO(data)) for path, data in files.items()]
    return api.create_commit(X, adds, commit_message="m", repo_type="dataset", **options)


def kinds(hub: LoopbackHub) -> list[str]:
    return [request.kind for request in hub.requests]


def ask(
    hub: LoopbackHub,
    target: str,
    method: str = "GET",
    body: Any = None,
    *,
    timeout_s: float = 20,
    is_chunked: bool = False,
    **headers: str,
) -> tuple[http.client.HTTPResponse, bytes]:
    """One request without a client's help, with the writer's token."""
    connection = http.client.HTTPConnection(urlsplit(hub.url).netloc, timeout=timeout_s)
    every = {"Authorization": f"Bearer {hub.token}", **headers}
    try:
        connection.request(method, target, body, every, encode_chunked=is_chunked)
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


def change(*operations: dict[str, Any], **header: str) -> bytes:
    """The body of a commit."""
    head = {"key": "header", "value": {"summary": "m", "description": "", **header}}
    return b"\n".join(json.dumps(line).encode() for line in [head, *operations])


NOTE = {"key": "file", "value": {"path": "a.txt", "content": "aGVsbG8=", "encoding": "base64"}}

COMMIT = f"/api/datasets/{X}/commit/main"

WHOAMI = "/api/whoami-v2"


# Writing


def test_a_new_repository_and_its_first_commit_take_seven_requests(
    hub: LoopbackHub, api: HfApi
) -> None:
    """The count that the sheet measured; all bytes arrive, in one commit."""
    api.create_repo(X, repo_type="dataset", private=True)
    done = commit(api, {"README.md": CARD, "data/a.parquet": SHARD})

    assert kinds(hub) == FIRST_COMMIT
    files = {".gitattributes": ANY, "README.md": CARD, "data/a.parquet": SHARD}
    assert hub.repo(X).files == files
    assert hub.repo(X).private
    (only,) = hub.repo(X).commits
    assert (only.oid, only.message) == (done.oid, "m")
    assert set(only.paths) == {"README.md", "data/a.parquet"}


def test_the_same_commit_again_is_none(hub: LoopbackHub, api: HfApi) -> None:
    """Preupload shows what is there, so the client stops and returns the head."""
    hub.create(X)
    files = {"README.md": CARD, "data/a.parquet": SHARD}
    first = commit(api, files)
    hub.requests.clear()

    assert commit(api, files).oid == first.oid
    assert kinds(hub) == ["validate", "preupload", "batch", "info"]
    assert len(hub.repo(X).commits) == 1


def test_two_large_files_are_put_unsigned_by_tokens_and_land_together(
    hub: LoopbackHub, api: HfApi
) -> None:
    """Each object has its own signed address, to which no token goes."""
    hub.create(X)
    seen: list[RequestInfo] = []
    hub.fault_plan = seen.append  # returns None: no fault
    commit(api, {"data/a.parquet": SHARD, "points/a.parquet": POINTS})

    puts = [request for request in seen if request.kind == "put"]
    assert [request.headers.get("authorization") for request in puts] == [None, None]
    assert hub.repo(X).files == {"data/a.parquet": SHARD, "points/a.parquet": POINTS}
    assert len(hub.repo(X).commits) == 1


def test_an_object_that_is_known_is_not_sent_again(hub: LoopbackHub, api: HfApi) -> None:
    """The batch leaves the actions out; the commit names the object at its second path."""
    hub.create(X, files={"data/a.parquet": SHARD})
    commit(api, {"data/b.parquet": SHARD})
    assert kinds(hub) == ["preupload", "batch", "commit"]
    assert hub.repo(X).files["data/b.parquet"] == SHARD


def test_a_small_text_goes_into_the_commit_itself(hub: LoopbackHub, api: HfApi) -> None:
    """No LFS for what is not Parquet."""
    hub.create(X)
    api.upload_file(path_or_fileobj=b"hello", path_in_repo="a.txt", repo_id=X, repo_type="dataset")
    assert kinds(hub) == ["preupload", "commit"]
    assert hub.repo(X).files == {"a.txt": b"hello"}


def test_files_and_folders_are_deleted(hub: LoopbackHub, api: HfApi) -> None:
    """A folder goes with all that is in it; what only starts like it stays."""
    hub.create(X, files={"a.txt": b"1", "d/b.txt": b"2", "d/e/c.txt": b"3", "dd.txt": b"4"})
    gone = [CommitOperationDelete("a.txt"), CommitOperationDelete("d/", is_folder=True)]
    api.create_commit(X, gone, commit_message="m", repo_type="dataset")
    assert hub.repo(X).files == {"dd.txt": b"4"}


def test_a_commit_that_changes_nothing_counts(hub: LoopbackHub) -> None:
    """The server does not save the client from it, so tests can see it."""
    hub.create(X, files={"a.txt": b"hello"})
    response, _ = ask(hub, COMMIT, "POST", change(NOTE))
    assert response.status == 200
    assert len(hub.repo(X).commits) == 1


def test_a_commit_with_an_unknown_object_is_refused(hub: LoopbackHub) -> None:
    """An LFS pointer needs an object that was uploaded."""
    hub.create(X)
    value = {"path": "a.parquet", "algo": "sha256", "oid": "0" * 64, "size": 3}
    response, body = ask(hub, COMMIT, "POST", change({"key": "lfsFile", "value": value}))
    assert (response.status, hub.repo(X).commits) == (400, [])
    assert "does not exist" in json.loads(body)["error"]


def test_an_object_must_be_what_its_address_says(hub: LoopbackHub) -> None:
    """Other bytes are refused, other sizes too, and so is an address that nobody signed."""
    hub.create(X)
    oid = hashlib.sha256(b"hello").hexdigest()

    def signed_path(size: int) -> str:
        wanted = json.dumps({"operation": "upload", "objects": [{"oid": oid, "size": size}]})
        _, body = ask(hub, f"/datasets/{X}.git/info/lfs/objects/batch", "POST", wanted)
        href: str = json.loads(body)["objects"][0]["actions"]["upload"]["href"]
        return href.removeprefix(hub.url)

    assert ask(hub, signed_path(5), "PUT", b"hullo")[0].status == 400
    assert ask(hub, signed_path(6), "PUT", b"hello")[0].status == 400
    assert ask(hub, signed_path(6).replace("size=6", "size=5"), "PUT", b"hello")[0].status == 403
    assert hub.repo(X).objects == {}
    chunks = iter([b"he", b"llo"])
    assert ask(hub, signed_path(5), "PUT", chunks, is_chunked=True)[0].status == 200
    assert hub.repo(X).objects == {oid: b"hello"}


def test_a_client_that_dies_in_the_middle_of_a_commit_changes_nothing(hub: LoopbackHub) -> None:
    """The lines that came through make a whole change, but the body is not whole."""
    hub.create(X)
    body = change(NOTE) + b"\n"
    head = f"POST {COMMIT} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {hub.token}\r\n"
    address = urlsplit(hub.url)
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(f"{head}Content-Length: {len(body) + 9}\r\n\r\n".encode() + body)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""
    assert hub.repo(X).commits == []


# Cards


def test_the_card_is_shown_as_data(hub: LoopbackHub, api: HfApi) -> None:
    """repo_info parses the head of README.md, as the real Hub does."""
    hub.create(X, private=False, files={"README.md": CARD})
    about = api.repo_info(X, repo_type="dataset")
    assert about.card_data["license"] == "cc0-1.0"
    assert (about.id, about.private, about.sha) == (X, False, hub.repo(X).head.oid)
    assert [file.rfilename for file in about.siblings] == ["README.md"]


def test_a_broken_card_is_refused_before_anything_is_sent(hub: LoopbackHub, api: HfApi) -> None:
    """validate-yaml answers 400, which the client words as ValueError."""
    hub.create(X)
    with pytest.raises(ValueError, match="Invalid metadata"):
        commit(api, {"README.md": b"---\nconfigs: [\n---\n"})
    assert kinds(hub) == ["validate"]


def test_a_card_without_metadata_is_warned_of(hub: LoopbackHub, api: HfApi) -> None:
    """The Hub's warning comes out as a Python one."""
    hub.create(X)
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        commit(api, {"README.md": b"# no metadata\n"})
    assert len(hub.repo(X).commits) == 1


# Who may


def test_whoami_tells_the_role_of_the_token(hub: LoopbackHub, api: HfApi) -> None:
    """The writer, the reader, and a token that nobody was given."""
    roles = [api.whoami(token)["auth"]["accessToken"]["role"] for token in (None, hub.read_token)]
    assert (api.whoami()["name"], roles) == ("me", ["write", "read"])
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        api.whoami("hf_nobody")


def test_repositories_are_created_once_and_in_ones_own_namespace(
    hub: LoopbackHub, api: HfApi
) -> None:
    """Again is a 409, which exist_ok forgives; elsewhere, and with a read token, it is 403."""
    url = api.create_repo(X, repo_type="dataset")
    assert api.create_repo(X, repo_type="dataset", private=True, exist_ok=True) == url
    assert not hub.repo(X).private, "exist_ok keeps a public repository public"
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo(X, repo_type="dataset")
    with pytest.raises(HfHubHTTPError, match="403"):
        api.create_repo("you/x", repo_type="dataset")
    with pytest.raises(HfHubHTTPError, match="403"):
        api.create_repo("me/y", repo_type="dataset", token=hub.read_token)
    response, _ = ask(hub, "/api/repos/create", "POST", json.dumps({"name": "a b"}))
    assert response.status == 400
    assert hub.repo("you/x") is hub.repo("me/y") is None


def test_a_private_repository_hides_from_strangers(hub: LoopbackHub, api: HfApi) -> None:
    """Without a token it is as if it were missing; with a wrong one it is 401; public is open."""
    repo = hub.create(X, private=True, files={"a.txt": b"hello"})
    for token, error in [(False, RepositoryNotFoundError), ("hf_nobody", HfHubHTTPError)]:
        with pytest.raises(error, match="401"):
            api.repo_info(X, repo_type="dataset", token=token)
        with pytest.raises(error, match="401"):
            commit(api, {"a.txt": b"x"}, token=token)
    with pytest.raises(RepositoryNotFoundError, match="404"):
        api.repo_info("me/missing", repo_type="dataset")
    repo.private = False
    assert api.list_repo_files(X, repo_type="dataset", token=False) == ["a.txt"]
    assert repo.commits == []


def test_a_read_token_reads_and_writes_not(hub: LoopbackHub, api: HfApi) -> None:
    """A private repository of one's own can be read; a commit is 403."""
    hub.create(X, private=True, files={"a.txt": b"hello"})
    assert api.repo_info(X, repo_type="dataset", token=hub.read_token).private
    with pytest.raises(HfHubHTTPError, match="403"):
        commit(api, {"a.txt": b"other"}, token=hub.read_token)
    assert hub.repo(X).files == {"a.txt": b"hello"}


def test_a_full_account_takes_no_more(hub: LoopbackHub, api: HfApi) -> None:
    """Objects, and what would come on top, are held against the quota."""
    hub.create(X)
    hub.quota_bytes = len(SHARD)
    commit(api, {"data/a.parquet": SHARD})
    with pytest.raises(HfHubHTTPError, match="storage limit"):
        commit(api, {"data/b.parquet": POINTS})
    assert list(hub.repo(X).files) == ["data/a.parquet"]


# Many writers


def test_a_stale_parent_is_412(hub: LoopbackHub, api: HfApi) -> None:
    """Only for those who name a parent."""
    first = hub.create(X).head.oid
    second = commit(api, {"a.txt": b"1"}, parent_commit=first).oid
    with pytest.raises(HfHubHTTPError, match="412"):
        commit(api, {"a.txt": b"2"}, parent_commit=first)
    third = commit(api, {"a.txt": b"3"}).oid
    assert [(made.parent, made.oid) for made in hub.repo(X).commits] == [
        (first, second),
        (second, third),
    ]


def test_twenty_five_threads_commit_and_nothing_is_lost(hub: LoopbackHub, api: HfApi) -> None:
    """A hub that queues takes everyone's shard, each in a commit of its own."""
    hub.create(X)
    hub.busy_commit_s = 0.01
    shards = {f"data/{n}.parquet": parquet(n) for n in range(25)}
    with ThreadPoolExecutor(25) as pool:
        done = list(pool.map(lambda shard: commit(api, dict([shard])).oid, shards.items()))
    assert hub.repo(X).files == shards
    assert {made.oid for made in hub.repo(X).commits} == set(done)


def test_a_busy_hub_may_refuse_the_second_commit(hub: LoopbackHub) -> None:
    """409 while another commit is in progress; afterwards it is taken."""
    hub.create(X)
    hub.is_busy_409 = True
    with hub.repo(X).turn:
        assert ask(hub, COMMIT, "POST", change(NOTE))[0].status == 409
    assert ask(hub, COMMIT, "POST", change(NOTE))[0].status == 200
    assert len(hub.repo(X).commits) == 1


def test_a_commit_takes_its_time_and_the_next_one_waits(hub: LoopbackHub) -> None:
    """Two at once take twice as long as one."""
    hub.create(X)
    hub.busy_commit_s = 0.1
    began = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(ask, hub, COMMIT, "POST", change(NOTE)) for _ in range(2)]
    assert time.monotonic() - began >= 0.2
    assert [answer.result()[0].status for answer in answers] == [200, 200]


# Reading


def test_long_listings_come_in_pages(hub: LoopbackHub, api: HfApi) -> None:
    """The client follows the Link header until there is none."""
    names = [f"f{n}.txt" for n in range(5)]
    hub.create(X, files=dict.fromkeys(names, b""))
    hub.page_size = 2
    assert api.list_repo_files(X, repo_type="dataset") == names
    assert kinds(hub) == ["tree"] * 3


def test_folders_are_listed_flat_or_deep(hub: LoopbackHub, api: HfApi) -> None:
    """Files with their objects, folders as such, and a 404 for a folder that is not there."""
    hub.create(X, files={"README.md": CARD, "data/m/a.parquet": SHARD})
    top = {entry.path for entry in api.list_repo_tree(X, repo_type="dataset")}
    deep = {
        entry.path: entry
        for entry in api.list_repo_tree(X, "data", recursive=True, repo_type="dataset")
    }
    assert top == {"README.md", "data"}
    assert set(deep) == {"data/m", "data/m/a.parquet"}
    assert deep["data/m/a.parquet"].lfs.size == len(SHARD)
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(X, "nowhere", repo_type="dataset"))
    found = api.get_paths_info(X, ["README.md", "nowhere"], repo_type="dataset")
    assert [(entry.path, entry.size) for entry in found] == [("README.md", len(CARD))]


def test_every_revision_stays_readable(hub: LoopbackHub, api: HfApi, tmp_path: Path) -> None:
    """The branch, and each commit by its oid; an unknown one is RevisionNotFound."""
    old = hub.create(X, files={"a.parquet": SHARD, "b.txt": b"1"}).head.oid
    commit(api, {"a.parquet": POINTS})
    common = {"repo_id": X, "repo_type": "dataset", "endpoint": hub.url, "token": hub.token}

    def read(name: str, revision: str) -> bytes:
        path = hf_hub_download(filename=name, revision=revision, cache_dir=tmp_path, **common)
        return Path(path).read_bytes()

    assert [read("a.parquet", at) for at in (old, "main")] == [SHARD, POINTS]
    assert read("b.txt", "main") == b"1"
    with pytest.raises(RevisionNotFoundError):
        api.repo_info(X, repo_type="dataset", revision="nowhere")
    with pytest.raises(EntryNotFoundError):
        read("c.txt", "main")


def test_ranges_of_a_file_can_be_read(hub: LoopbackHub) -> None:
    """From the start, to the end, the last bytes, past the end; HEAD tells the whole size."""
    hub.create(X, files={"a.txt": b"hello"})
    target = f"/datasets/{X}/resolve/main/a.txt"
    parts = {"bytes=1-2": b"el", "bytes=3-": b"lo", "bytes=-2": b"lo", "bytes=0-99": b"hello"}
    for wanted, part in parts.items():
        response, body = ask(hub, target, Range=wanted)
        assert (response.status, body) == (206, part)
    assert response.getheader("Content-Range") == "bytes 0-4/5"
    assert ask(hub, target, Range="bytes=5-6")[0].status == 416
    response, body = ask(hub, target, "HEAD")
    assert (response.getheader("Content-Length"), body) == ("5", b"")
    assert response.getheader("X-Repo-Commit") == hub.repo(X).head.oid


def test_the_file_system_reads_a_footer(hub: LoopbackHub) -> None:
    """HfFileSystem lists a folder and fetches ranges of an open file."""
    hub.create(X, files={"data/a b=1.parquet": SHARD})
    files = HfFileSystem(endpoint=hub.url, token=hub.token, skip_instance_cache=True)
    (path,) = files.ls(f"datasets/{X}/data", detail=False)
    with files.open(path) as file:
        assert pq.read_table(file).column("n").to_pylist() == [1, 2, 3]
    assert any(request.status == 206 for request in hub.requests)


# Faults


@pytest.mark.parametrize("status", [408, 409, 412, 413, 429, 500, 503, 504])
def test_a_commit_may_be_refused_with_any_status(hub: LoopbackHub, api: HfApi, status: int) -> None:
    """The client does not repeat a commit, and the headers reach the caller."""
    hub.create(X)
    hub.faults.append(Fault("commit", status=status, headers={"Retry-After": "3"}, error="no\nnow"))
    with pytest.raises(HfHubHTTPError, match="no") as refused:
        commit(api, {"a.txt": b"1"})
    assert refused.value.response.status_code == status
    assert refused.value.response.headers["retry-after"] == "3"
    assert (kinds(hub), hub.repo(X).commits) == (["preupload", "commit"], [])


@pytest.mark.parametrize("kind", ["preupload", "batch", "put", "verify"])
def test_the_client_repeats_what_comes_before_the_commit(
    hub: LoopbackHub, api: HfApi, kind: str
) -> None:
    """One 503, then as if nothing had been."""
    hub.create(X)
    hub.faults.append(Fault(kind, status=503))
    commit(api, {"a.parquet": SHARD})
    assert [request.status for request in hub.requests if request.kind == kind] == [503, 200]
    assert hub.repo(X).files == {"a.parquet": SHARD}


def test_a_connection_dropped_before_the_commit_leaves_nothing(
    hub: LoopbackHub, api: HfApi
) -> None:
    """The client sees a transport error; the record shows no status."""
    hub.create(X)
    hub.faults.append(Fault("commit", drop_before=True))
    with pytest.raises(TransportError) as dropped:
        commit(api, {"a.txt": b"1"})
    assert not isinstance(dropped.value, HfHubHTTPError)
    assert (hub.requests[-1].status, hub.repo(X).commits) == (None, [])


def test_a_commit_whose_answer_is_lost_can_be_repeated(hub: LoopbackHub, api: HfApi) -> None:
    """It landed, so the same bytes again are no second commit."""
    hub.create(X)
    hub.faults.append(Fault("commit", drop_after=True))
    with pytest.raises(TransportError):
        commit(api, {"a.parquet": SHARD})
    again = commit(api, {"a.parquet": SHARD})
    assert [made.oid for made in hub.repo(X).commits] == [again.oid]


def test_a_hub_that_hangs_lets_go_when_it_closes() -> None:
    """The client has no timeout; closing frees it at once."""
    with LoopbackHub() as hub, ThreadPoolExecutor(1) as pool:
        hub.faults.append(Fault("whoami", hang=True))
        hanging = pool.submit(HfApi(endpoint=hub.url, token=hub.token).whoami)
        wait_for(lambda: hub.requests)
        with pytest.raises(TimeoutError):
            hanging.result(0.2)
        began = time.monotonic()
        hub.close()
        with pytest.raises(TransportError):
            hanging.result(5)
    assert time.monotonic() - began < 5
    close_session()


def wait_for(is_true: Any, limit_s: float = 10) -> None:
    """Return when *is_true*() is."""
    end = time.monotonic() + limit_s
    while not is_true():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_answers_may_come_late_or_slowly(hub: LoopbackHub) -> None:
    """A delay comes before the head, a slow body after it; the head may be slow too."""
    hub.create(X, files={"a.txt": b"x" * 100})
    hub.faults.append(Fault("whoami", delay_s=0.2))
    hub.faults.append(Fault("whoami", slow_headers_bytes_per_s=400))
    hub.faults.append(Fault("resolve", slow_body_bytes_per_s=400))
    file = f"/datasets/{X}/resolve/main/a.txt"
    for target, size in [(WHOAMI, None), (WHOAMI, None), (file, 100)]:
        began = time.monotonic()
        response, body = ask(hub, target)
        assert time.monotonic() - began >= 0.2
        assert response.status == 200
        assert size in (None, len(body))


def test_every_request_can_be_made_slow(hub: LoopbackHub) -> None:
    """As over a long line."""
    hub.delay_s = 0.1
    began = time.monotonic()
    ask(hub, WHOAMI)
    assert time.monotonic() - began >= 0.1


def test_faults_come_after_some_requests_and_for_some(hub: LoopbackHub) -> None:
    """They read as a sequence, and a plan that sees the request goes first."""
    hub.faults += [Fault("whoami", after=1, times=2, status=500), Fault(after=1, status=503)]
    statuses = [ask(hub, WHOAMI)[0].status for _ in range(6)]
    assert statuses == [200, 500, 500, 503, 200, 200]

    hub.fault_plan = lambda request: Fault(status=418) if "tea" in request.query else None
    assert ask(hub, f"{WHOAMI}?tea")[0].status == 418
    assert ask(hub, WHOAMI)[0].status == 200


def test_a_fault_needs_a_kind_that_exists() -> None:
    """A misspelled kind would never befall anything."""
    with pytest.raises(ValueError, match="'comit'"):
        Fault("comit", status=500)


def test_a_gateway_that_answers_html_is_seen_by_the_client_as_bad_json(
    hub: LoopbackHub, api: HfApi
) -> None:
    """validate-yaml alone is read as JSON before its status: a 502 page comes out as ValueError."""
    hub.create(X)
    hub.faults.append(Fault("validate", status=502, body=b"<html>Bad Gateway</html>"))
    with pytest.raises(json.JSONDecodeError):
        commit(api, {"README.md": CARD})


# The server


def test_small_answers_are_not_held_back(hub: LoopbackHub, api: HfApi) -> None:
    """Fifty requests over one connection; a held back answer costs 40 ms."""
    hub.create(X)
    began = time.monotonic()
    for _ in range(50):
        api.repo_info(X, repo_type="dataset")
    assert time.monotonic() - began < 1.5


def test_what_is_not_modelled_is_404_and_recorded(hub: LoopbackHub) -> None:
    """xet tokens, for example: there is no content-addressed store behind this hub."""
    path = f"/api/datasets/{X}/xet-write-token/main"
    assert ask(hub, f"{path}?a=1")[0].status == 404
    (seen,) = hub.requests
    assert (seen.method, seen.path, seen.query, seen.status) == ("GET", path, "a=1", 404)


def test_closing_ends_every_thread() -> None:
    """Idle connections too; twice is once."""
    before = set(threading.enumerate())
    with LoopbackHub() as hub:
        address = urlsplit(hub.url)
        with socket.create_connection((address.hostname, address.port)) as idle:
            wait_for(lambda: len(set(threading.enumerate()) - before) == 2)
            hub.close()
            assert idle.recv(1) == b""
    assert set(threading.enumerate()) <= before


# Both major versions of the client, and datasets


READER = """
import json
import huggingface_hub
from datasets import load_dataset
whole = load_dataset("me/x", split="train")
named = load_dataset("me/x", "points", split="train")
stream = load_dataset("me/x", split="train", streaming=True)
version = huggingface_hub.__version__
print(json.dumps([version, whole["n"][:], named["n"][:], [row["n"] for row in stream]]))
"""

WRITER = """
import io, json
import huggingface_hub as hf
api = hf.HfApi()
card, shard = open("card", "rb").read(), open("shard", "rb").read()

def commit():
    adds = [("README.md", card), ("data/a.parquet", shard)]
    adds = [hf.CommitOperationAdd(path, io.BytesIO(data)) for path, data in adds]
    return api.create_commit("me/new", adds, commit_message="m", repo_type="dataset").oid

api.create_repo("me/new", repo_type="dataset", private=True)
print(json.dumps([hf.__version__, commit(), commit(), api.whoami()["name"]]))
"""


@pytest.fixture(params=["1", "2"])
def client(request: pytest.FixtureRequest) -> tuple[str, dict[str, str]]:
    """A version of huggingface_hub, one of each major version, and what selects it."""
    for overlay in hub_overlays():
        if overlay[0].startswith(f"{request.param}."):
            return overlay
    reason = f"huggingface_hub {request.param}.x IS NOT TESTED: `make pythons` says why"
    return pytest.fail(reason) if ARE_REQUIRED else pytest.skip(reason)


def run(code: str, hub: LoopbackHub, folder: Path, overlay: Mapping[str, str]) -> list[Any]:
    """What *code* printed as JSON, run in *folder* by a process that believes in *hub*."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **hub.environment(folder / "home"), **overlay},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


def test_each_version_writes_with_the_same_requests(
    hub: LoopbackHub, tmp_path: Path, client: tuple[str, dict[str, str]]
) -> None:
    """In a process with HF_ENDPOINT: create, commit, the same commit again, whoami."""
    (tmp_path / "card").write_bytes(CARD)
    (tmp_path / "shard").write_bytes(SHARD)
    version, first, second, name = run(WRITER, hub, tmp_path, client[1])

    assert (version, first, name) == (client[0], second, "me")
    assert [made.oid for made in hub.repo("me/new").commits] == [first]
    again = ["validate", "preupload", "batch", "info"]
    assert kinds(hub) == [*FIRST_COMMIT, *again, "whoami"]


def test_load_dataset_reads_configs_whole_and_as_a_stream(
    hub: LoopbackHub, tmp_path: Path, client: tuple[str, dict[str, str]]
) -> None:
    """The default config, a named one, and streaming, from a private repository."""
    more = {"data/b.parquet": parquet(4)}
    files = {"README.md": CARD, "data/a.parquet": SHARD, "points/a.parquet": POINTS, **more}
    hub.create(X, private=True, files=files)
    seen = run(READER, hub, tmp_path, client[1])
    assert seen == [client[0], [1, 2, 3, 4], [7], [1, 2, 3, 4]]
