"""A real server on a real socket, in a thread of the tests."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest

from rerank_plugin import Reranker
from rerank_plugin.server import ServerSettings, create_app
from rerank_plugin.server.serve import Server, bind

from ..factories import sample_texts
from ..training.test_lora import drawn_adapter

#: Tests with packages that cannot be installed beside the oldest ones of others.
collect_ignore = [
    file
    for file, package in {"test_clients.py": "litellm", "test_openapi.py": "schemathesis"}.items()
    if find_spec(package) is None
]

QUERY = "when does it sail"
TEXTS = sample_texts()[:12]


@dataclass
class Served:
    """A server, its model, and a client of it."""

    url: str
    app: Any
    reranker: Reranker
    client: httpx.Client

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return self.client.post(path, json=body, **options)

    @property
    def address(self) -> tuple[str, int]:
        url = httpx.URL(self.url)
        return url.host, url.port or 0


Serve = Callable[..., Served]


@contextmanager
def serving(reranker: Reranker, settings: dict[str, Any], **options: Any) -> Iterator[Served]:
    """Serve a model until the block ends."""
    names = options.pop("names", ["tiny"])
    app_settings = ServerSettings(**settings)
    app = create_app(reranker, settings=app_settings, names=names, **options)
    server = Server(
        app, max_connections=100, read_timeout=app_settings.read_timeout, shutdown_timeout=30
    )
    started = threading.Event()
    server.on_start = started.set
    bound = bind("127.0.0.1", 0)
    url = "http://{}:{}".format(*bound.getsockname())
    thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
    thread.start()
    assert started.wait(60)
    try:
        with httpx.Client(base_url=url, timeout=60) as client:
            yield Served(url, app, reranker, client)
    finally:
        server.should_exit = True
        thread.join(60)


@pytest.fixture(scope="session")
def reranker(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Reranker:
    folder = tmp_path_factory.mktemp("adapters")
    adapters = {
        name: drawn_adapter(tiny_model, folder / name, seed)
        for seed, name in enumerate(("legal", "medical"))
    }
    return Reranker(tiny_model, adapters=adapters, dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def served(reranker: Reranker) -> Iterator[Served]:
    with serving(reranker, {}) as server:
        yield server


@pytest.fixture
def serve(reranker: Reranker) -> Iterator[Serve]:
    """Serve with other settings."""
    with ExitStack() as stack:

        def start(reranker: Reranker = reranker, **settings: Any) -> Served:
            options = {
                name: settings.pop(name) for name in ("api_key", "names") if name in settings
            }
            return stack.enter_context(serving(reranker, settings, **options))

        yield start
