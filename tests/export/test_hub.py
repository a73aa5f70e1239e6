"""`--push_to_hub` against a hub on the loopback that keeps what it is sent."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ..factories import Run


class Hub(ThreadingHTTPServer):
    """Answers as the hub does, or with the `status` of the path's beginning."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files: dict[str, bytes] = {}
        self.created: list[dict[str, Any]] = []
        self.branches: list[str] = []
        self.status: dict[str, int] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        for beginning, status in self.server.status.items():
            if beginning in self.path:
                return self.answer({"error": "you may not"}, status)
        if self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            name = json.loads(body)["name"]
            return self.answer({"url": f"{self.server.url}/me/{name}", "id": f"me/{name}"})
        if "/preupload/" in self.path:
            files = json.loads(body)["files"]
            kept = [{"path": file["path"], "uploadMode": "regular"} for file in files]
            return self.answer({"files": [{**file, "shouldIgnore": False} for file in kept]})
        if "/commit/" in self.path:
            self.server.branches.append(self.path.rpartition("/")[2].partition("?")[0])
            for line in body.splitlines():
                record = json.loads(line)
                if record["key"] == "file":
                    content = base64.b64decode(record["value"]["content"])
                    self.server.files[record["value"]["path"]] = content
            made = {"commitUrl": f"{self.server.url}/me/mine/commit/1", "commitOid": "1"}
            return self.answer({**made, "success": True})
        return self.answer({})

    def do_GET(self) -> None:
        for beginning, status in self.server.status.items():
            if beginning in self.path:
                return self.answer({"error": "you may not"}, status)
        return self.answer({"name": "me", "id": "me/mine", "sha": "0", "siblings": []})

    def answer(self, value: dict[str, Any], status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in ("huggingface_hub.constants", "huggingface_hub.hf_api"):
        monkeypatch.setattr(f"{name}.ENDPOINT", server.url, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", server.url)
    yield server
    server.shutdown()


@pytest.fixture
def train(cli: Run, tiny_model: Path, groups_file: Path, eval_file: Path, tmp_path: Path) -> Any:
    options = [
        *("train", "--model_name_or_path", tiny_model, "--data_path", groups_file),
        *("--eval_data_path", eval_file, "--finetune_model_dir", tmp_path / "mine"),
        *("--max_steps", 1, "--device", "cpu", "--push_to_hub", "--hub_token", "hf_secret"),
    ]
    return lambda *more: cli(*options, *more)


def test_the_trained_folder_is_uploaded(hub: Hub, train: Any, tmp_path: Path) -> None:
    code, _, err = train("--hub_private_repo", "true", "--hub_revision", "tuned")
    assert code == 0, err
    (created,) = hub.created
    assert (created["name"], created["visibility"]) == ("mine", "private")
    assert hub.branches == ["tuned"]
    folder = tmp_path / "mine"
    local = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert set(hub.files) == local >= {"README.md", "config.json", "model.safetensors"}
    assert not any(b"hf_secret" in content for content in hub.files.values())


def test_skipped_lines_are_not_uploaded(
    hub: Hub, train: Any, groups_file: Path, tmp_path: Path
) -> None:
    with groups_file.open("a", encoding="utf-8") as file:
        file.write("{}\n")
    code, _, err = train("--on_bad_line", "skip")
    assert code == 0, err
    assert (tmp_path / "mine" / "skipped_lines.jsonl").is_file()
    assert "README.md" in hub.files and "skipped_lines.jsonl" not in hub.files


@pytest.mark.parametrize("path", ["/api/repos/create", "/auth-check"])
@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_hub_that_refuses_is_an_error_before_training(
    hub: Hub, train: Any, status: int, path: str, tmp_path: Path
) -> None:
    hub.status[path] = status
    if path != "/auth-check":
        hub.status["/api/models"] = status
    code, _, err = train("--hub_model_id", "them/theirs")
    assert code == 2
    assert "--push_to_hub: cannot create or write them/theirs" in err
    assert "training" not in err
    assert list(tmp_path.glob("mine*")) == []


def test_no_hub_is_an_error_before_training(train: Any) -> None:
    code, _, err = train()
    assert code == 2
    assert "--push_to_hub: cannot create or write mine" in err


def test_a_failed_upload_keeps_the_model(hub: Hub, train: Any, tmp_path: Path) -> None:
    hub.status["/commit/"] = 403
    code, _, err = train()
    assert code == 1
    assert (tmp_path / "mine" / "model.safetensors").is_file()
    assert f"hf upload me/mine {tmp_path / 'mine'} ." in err
