"""Sessions on a Dask cluster: the same tokens as a single session, on any worker, and when workers die."""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("distributed", reason="the cluster extra is not installed")

from distributed import Client, LocalCluster

import teachllama as tl
from teachllama import cluster as module
from teachllama.beginnings import agreeing
from teachllama.cluster import ClusterSession

STORIES = Path(tl.__file__).parent / "data" / "tiny-stories.gguf"
WARM = tl.SamplingParams(temperature=0.9, top_k=40)
HOW: dict[str, Any] = {"weights": "f32", "backend": "numpy"}
BEGIN = "Once upon a time there was a little dog who lived in a big house with his friend. One day the dog"


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with (
            LocalCluster(n_workers=3, threads_per_worker=1, processes=True, dashboard_address=None) as local,
            Client(local) as client,
        ):
            yield client


@pytest.fixture
def cluster(client: Client) -> Iterator[tl.Cluster]:
    client.wait_for_workers(3)
    with tl.Cluster(client, STORIES, **HOW) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def model() -> Iterator[tl.Model]:
    with tl.load_model(STORIES, **HOW) as model:
        yield model


def alone(model: tl.Model, turns: list[str], n: int = 12, seed: int = 7) -> list[list[int]]:
    with model.create_session(seq_len=256, seed=seed) as session:
        return [[t.id for t in session.generate(turn, WARM, max_new_tokens=n)] for turn in turns]


def said(session: ClusterSession, turns: list[str], n: int = 12) -> list[list[int]]:
    return [[t.id for t in session.generate(turn, WARM, max_new_tokens=n)] for turn in turns]


TURNS = [BEGIN, " Then he said,", " At the end"]


@pytest.mark.parametrize("routing", ["prefix", "sticky", "round robin"])
def test_a_conversation_has_the_tokens_it_would_have_alone(client: Client, model: tl.Model, routing: str) -> None:
    with tl.Cluster(client, STORIES, routing=routing, **HOW) as cluster:
        session = cluster.open_session(seq_len=256, seed=7)
        assert said(session, TURNS) == alone(model, TURNS)
        assert session.n_past == len(session.tokens)
        if routing == "round robin":
            assert session.stats.recomputed > 0
        else:
            assert (session.stats.recomputed, session.lost) == (0, 0)


def test_sessions_are_spread_and_stay_where_they_are(cluster: tl.Cluster, model: tl.Model) -> None:
    sessions = [cluster.open_session(seq_len=256, seed=i) for i in range(3)]
    for i, session in enumerate(sessions):
        said(session, [f"{i}, a cat ran to the"])
    places = [session.worker for session in sessions]
    assert len(set(places)) == 3
    for session in sessions:
        said(session, [" And"])
    assert [session.worker for session in sessions] == places


def test_a_new_session_goes_where_its_beginning_is_held(cluster: tl.Cluster, model: tl.Model) -> None:
    first, other, second = (cluster.open_session(seq_len=256, seed=i) for i in range(3))
    said(first, [BEGIN])
    said(other, ["A cat sat on a tree"])
    turn = BEGIN + " was hungry"
    assert said(second, [turn]) == alone(model, [turn], seed=2)
    assert second.worker == first.worker
    n = agreeing(first.tokens, second.tokens)
    assert second.stats.reused >= min(n, module.MIN_SHARED)
    assert second.stats.n_prompt < 10  # the worker already held the rest


def test_a_moved_session_brings_its_keys_and_values(cluster: tl.Cluster, model: tl.Model) -> None:
    session = cluster.open_session(seq_len=256, seed=7)
    before = said(session, TURNS[:1])
    there = next(w for w in cluster.workers if w != session.worker)
    assert cluster.move(session, there) == session.n_past
    after = said(session, TURNS[1:])
    assert (session.worker, session.stats.recomputed) == (there, 0)
    assert before + after == alone(model, TURNS)
    with pytest.raises(tl.ParameterError, match="no worker"):
        cluster.move(session, "tcp://nowhere:1")


def test_a_drained_worker_gives_its_sessions_away_and_gets_no_more(cluster: tl.Cluster, model: tl.Model) -> None:
    sessions = [cluster.open_session(seq_len=256, seed=7) for _ in range(3)]
    first = [said(s, [f"{i} {TURNS[0]}"]) for i, s in enumerate(sessions)]
    gone = sessions[0].worker
    assert gone is not None
    here = sum(s.worker == gone for s in sessions)
    assert cluster.drain(gone) == here > 0
    assert gone not in cluster.workers
    assert all(s.worker != gone for s in sessions)
    for i, s in enumerate(sessions):
        turns = [f"{i} {TURNS[0]}", *TURNS[1:]]
        assert first[i] + said(s, TURNS[1:]) == alone(model, turns)
        assert s.stats.recomputed == 0


def test_a_worker_killed_in_the_middle_of_a_reply_loses_no_conversation(
    cluster: tl.Cluster, client: Client, model: tl.Model
) -> None:
    session = cluster.open_session(seq_len=400, seed=7)
    with model.create_session(seq_len=400, seed=7) as expected:
        turns = [(BEGIN, 20), (" Then", 120), (" At last", 20)]
        right = [[t.id for t in expected.generate(turn, WARM, max_new_tokens=n)] for turn, n in turns]
    assert said(session, [BEGIN], 20) == right[:1]
    pids = client.run(os.getpid)
    killed = session.worker
    got: list[list[int]] = []
    thread = threading.Thread(target=lambda: got.extend(said(session, [" Then"], 120)))
    thread.start()
    deadline = time.monotonic() + 20
    while not client.processing().get(killed) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(pids[killed], signal.SIGKILL)
    thread.join(120)
    assert got == right[1:2]
    assert session.lost == 1
    assert session.worker != killed
    assert session.stats.recomputed > 0
    assert said(session, [" At last"], 20) == right[2:]
    assert session.stats.recomputed == 0


def test_more_sessions_than_a_worker_may_hold_are_made_again(client: Client, model: tl.Model) -> None:
    client.wait_for_workers(3)
    with tl.Cluster(client, STORIES, max_sessions=1, **HOW) as cluster:
        sessions = [cluster.open_session(seq_len=256, seed=7) for _ in range(4)]
        begun = [said(s, [f"{i} {TURNS[0]}"]) for i, s in enumerate(sessions)]
        for i, s in enumerate(sessions):
            assert begun[i] + said(s, TURNS[1:]) == alone(model, [f"{i} {TURNS[0]}", *TURNS[1:]])


def test_errors_of_a_worker_arrive_as_themselves(cluster: tl.Cluster) -> None:
    with cluster.open_session(seq_len=8) as session:
        with pytest.raises(tl.ContextFullError):
            session.generate(list(range(20)))
        with pytest.raises(tl.ParameterError):
            session.generate("the", max_new_tokens=-1)
        assert session.n_past == 0
    assert cluster.sessions == []


def test_a_session_is_still_held_after_an_error(cluster: tl.Cluster, model: tl.Model) -> None:
    session = cluster.open_session(seq_len=256, seed=7)
    first = said(session, TURNS[:1])
    with pytest.raises(tl.ContextFullError):
        session.generate([5] * 300)
    assert first + said(session, TURNS[1:]) == alone(model, TURNS)
    assert session.stats.recomputed == 0


def test_wrong_settings_are_refused(client: Client) -> None:
    with pytest.raises(tl.ParameterError, match="round robin"):
        tl.Cluster(client, STORIES, routing="magic")
    with pytest.raises(tl.ParameterError, match="max_sessions"):
        tl.Cluster(client, STORIES, max_sessions=0)
