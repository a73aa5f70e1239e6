"""`rerank-plugin serve` as a process of its own."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import pytest

from rerank_plugin import Reranker
from rerank_plugin.cli.parser import parse_options
from rerank_plugin.cli.serve import ServeOptions
from rerank_plugin.errors import OptionError

from ..factories import Run
from ..training.test_lora import drawn_adapter
from .conftest import QUERY, TEXTS
from .test_faults import head, read_all

REQUEST = {"query": QUERY, "documents": TEXTS}


class Process:
    """A running `rerank-plugin serve`."""

    def __init__(self, *arguments: object, prefix: Sequence[str] = (), **options: Any) -> None:
        command = [*prefix, sys.executable, "-m", "rerank_plugin", "serve", "--port", "0"]
        command += [str(argument) for argument in arguments]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options)
        assert self.process.stderr is not None
        self.lines = [line := self.process.stderr.readline()]
        while line and "serving at" not in line:
            self.lines.append(line := self.process.stderr.readline())
        found = re.search(r"http://\S+", line)
        assert found, self.lines
        self.url = found[0]

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Send a signal; returns the exit code, and what was written to stderr."""
        self.process.send_signal(number)
        _, err = self.process.communicate(timeout=60)
        return self.process.returncode, "".join(self.lines) + err


Start = Callable[..., Process]


@pytest.fixture
def start() -> Iterator[Start]:
    processes: list[Process] = []

    def run(*arguments: object, **options: Any) -> Process:
        processes.append(Process("--device", "cpu", "--threads", 1, *arguments, **options))
        return processes[-1]

    yield run
    for started in processes:
        if started.process.poll() is None:
            started.process.kill()
        started.process.wait()


POSIX = pytest.mark.skipif(os.name != "posix", reason="Windows has no such signals and modes")


@POSIX
def test_a_model_with_adapters_and_a_key(tiny_model: Path, tmp_path: Path, start: Start) -> None:
    """It writes nothing: neither into its folder, nor into the home, nor beside the model."""
    legal, medical = (drawn_adapter(tiny_model, tmp_path / str(seed), seed) for seed in (0, 1))
    key = tmp_path / "key"
    key.touch(0o600)
    key.write_text("secret-key\n")
    adapters = ("--adapter", f"legal={legal}", "--adapter", f"medical={medical}")
    options = ("--api_key_file", key, "--served_model_name", "mine", "--dtype", "float32")
    home = tmp_path / "home"
    home.mkdir()
    before = sorted(tmp_path.rglob("*")), sorted(tiny_model.rglob("*"))
    environment = {**os.environ, "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    command = ("--model_dir", tiny_model, *adapters, *options)
    server = start(*command, cwd=home, env=environment)
    headers = {"Authorization": "Bearer secret-key"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=60) as client:
        reply = client.post("/v1/rerank", json={**REQUEST, "model": "medical"}).json()
        models = [model["id"] for model in client.get("/v1/models").json()["data"]]
        with httpx.Client(base_url=server.url) as stranger:
            refused = stranger.post("/v1/rerank", json=REQUEST)
    assert refused.status_code == 401
    assert models == ["mine", "legal", "medical"]
    reranker = Reranker(tiny_model, adapters={"medical": medical}, dtype="float32", device="cpu")
    expected = reranker.rank(QUERY, TEXTS, adapter="medical")
    assert [result["index"] for result in reply["results"]] == [r.index for r in expected]
    code, err = server.end(signal.SIGINT)
    assert code == 0
    assert (sorted(tmp_path.rglob("*")), sorted(tiny_model.rglob("*"))) == before
    assert "POST /v1/rerank 200: jina, 12 documents" in err
    assert "POST /v1/rerank 401: jina, 0 documents" in err
    assert QUERY not in err and TEXTS[0] not in err and "secret" not in err


#: Runs a command as a user without a name or a home, who can write to no file system.
READ_ONLY = """
set -e
mount --make-rprivate /
for target in $(findmnt --raw --noheadings --output TARGET)
do
    mount -o remount,bind,ro "$target" || true
done
for folder in /tmp /var/tmp /dev/shm "$PWD"
do
    if touch "$folder/probe" 2> /dev/null
    then
        rm "$folder/probe"
        exit 1
    fi
done
exec setpriv --reuid=12345 --regid=12345 --clear-groups --no-new-privs -- "$@"
"""


@POSIX
def test_a_user_without_rights_on_a_read_only_file_system(tiny_model: Path, start: Start) -> None:
    with TemporaryDirectory() as name:
        # The folders of pytest can be read by their owner only.
        folder = Path(name)
        folder.chmod(0o755)
        model = shutil.copytree(tiny_model, folder / "model")
        adapter = drawn_adapter(model, folder / "legal", 0)
        for path in folder.rglob("*"):
            path.chmod(0o755)
        prefix = ["unshare", "--mount", "sh", "-c", READ_ONLY, "sh"]
        options: dict[str, Any] = {"env": {"PATH": os.environ["PATH"]}, "cwd": folder}
        program = [*prefix, sys.executable, "-c", "import rerank_plugin"]
        if subprocess.run(program, capture_output=True, check=False, **options).returncode:
            pytest.skip("not permitted to mount file systems or to be another user")
        command = ("--model_dir", model, "--adapter", f"legal={adapter}", "--dtype", "float32")
        server = start(*command, prefix=prefix, **options)
        with httpx.Client(base_url=server.url, timeout=60) as client:
            replies = [
                client.post("/v1/rerank", json={**REQUEST, "model": model})
                for model in ("model", "legal")
            ]
            pages = [client.get(path) for path in ("/", "/metrics", "/openapi.json", "/info")]
    assert [reply.status_code for reply in [*replies, *pages]] == [200] * 6
    expected = Reranker(tiny_model, dtype="float32", device="cpu").rank(QUERY, TEXTS)
    scores = [result["relevance_score"] for result in replies[0].json()["results"]]
    assert scores == pytest.approx([ranked.score for ranked in expected], abs=1e-6)
    code, err = server.end()
    assert code == 0
    assert "Permission denied" not in err and "Read-only" not in err


@POSIX
def test_sigterm_finishes_what_is_in_flight_and_refuses_the_rest(
    tiny_model: Path, start: Start
) -> None:
    server = start("--model_dir", tiny_model)
    url = httpx.URL(server.url)
    body = json.dumps(REQUEST).encode()
    answered: list[int] = []

    def ask() -> None:
        with suppress(httpx.TransportError):
            while True:
                answered.append(httpx.post(url.join("/v1/rerank"), json=REQUEST).status_code)

    clients = [threading.Thread(target=ask) for _ in range(8)]
    with socket.create_connection((url.host, url.port), timeout=60) as slow:
        # A request whose last byte arrives when no more connections are accepted.
        slow.sendall(head(len(body)) + body[:-1])
        for client in clients:
            client.start()
        while len(answered) < 20:
            pass
        server.process.terminate()
        for client in clients:
            client.join(60)
        with suppress(ConnectionRefusedError):
            while True:
                socket.create_connection((url.host, url.port), timeout=60).close()
        slow.sendall(body[-1:])
        assert read_all(slow).startswith(b"HTTP/1.1 200 ")
    code, err = server.end()
    assert code == 0 and set(answered) == {200}
    # Nobody's answer was lost.
    assert err.count("POST /v1/rerank 200: ") == len(answered) + 1


@pytest.mark.parametrize(
    ("content", "mode", "problem"),
    [
        pytest.param("secret", 0o644, "every user may read it", marks=POSIX),
        ("", 0o600, "the file is empty"),
        (" \n", 0o600, "the file is empty"),
        ("two\nkeys", 0o600, "expected one key"),
        ("schlüssel", 0o600, "expected one key"),
        (None, 0o600, "cannot be read"),
    ],
)
def test_a_bad_key_file_is_refused(
    cli: Run, tiny_model: Path, tmp_path: Path, content: str | None, mode: int, problem: str
) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_text(content, "utf-8")
        file.chmod(mode)
    code, _, err = cli("serve", "--model_dir", tiny_model, "--api_key_file", file)
    assert code == 2 and len(err.splitlines()) == 1
    assert f"--api_key_file: {file}: {problem}" in err


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"adapter": ["legal"]}, "adapter"),
        ({"adapter": ["=folder"]}, "adapter"),
        ({"adapter": ["a=b", "a=c"]}, "adapter"),
        ({"port": 70_000}, "port"),
        ({"max_waiting_pairs": 10}, "max_waiting_pairs"),
        ({"max_waiting_bytes": 10}, "max_waiting_bytes"),
        ({"max_documents": 0}, "max_documents"),
        ({"allowed_hosts": ["*example.com"]}, "allowed_hosts"),
        ({"allowed_hosts": ["a.*"]}, "allowed_hosts"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], name: str) -> None:
    with pytest.raises(OptionError, match=f"^--{name}: "):
        ServeOptions(model_dir="mine", **options)


def test_lists_may_have_one_value() -> None:
    origin, host = "https://example.com", "*.example.com"
    arguments = ["--model_dir", "mine", "--cors_origins", origin, "--allowed_hosts", host]
    options = parse_options(ServeOptions, arguments, command="serve")
    settings = options.server_settings()
    assert (settings.cors_origins, settings.allowed_hosts) == ([origin], [host])


def test_a_loopback_address_is_reached_by_its_names() -> None:
    local, others = (ServeOptions(model_dir="m", host=host) for host in ("127.0.0.1", "0.0.0.0"))
    assert "localhost" in (local.server_settings().allowed_hosts or [])
    assert others.server_settings().allowed_hosts is None


def test_a_name_stands_for_one_model(cli: Run, tiny_model: Path, tmp_path: Path) -> None:
    adapter = drawn_adapter(tiny_model, tmp_path / "legal", 0)
    names = ("--adapter", f"legal={adapter}", "--served_model_name", "legal")
    code, _, err = cli("serve", "--model_dir", tiny_model, *names)
    assert code == 2 and "'legal' is the name of the model, too" in err


def test_a_busy_port_is_one_line(cli: Run, tiny_model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        code, _, err = cli("serve", "--model_dir", tiny_model, "--port", port)
    assert code == 2 and len(err.splitlines()) == 1
    assert f"--port: 127.0.0.1:{port}: " in err
