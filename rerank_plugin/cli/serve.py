"""`rerank-plugin serve`: an HTTP endpoint that other programs rank with."""

import logging
import os
import tempfile
from dataclasses import dataclass, fields

from rerank_plugin.errors import OptionError
from rerank_plugin.extras import require
from rerank_plugin.options import ScoreOptions, check_options, option
from rerank_plugin.server.settings import ServerSettings

logger = logging.getLogger(__name__)

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(kw_only=True)
class ServeOptions(ServerSettings, ScoreOptions):
    """Serve a model over HTTP, in the formats of Jina, Cohere and text-embeddings-inference."""

    model_dir: str = option(help="the model: a hub id, a folder or an adapter folder")
    adapter: list[str] | None = option(
        None,
        help="LoRA adapters for the model as NAME=FOLDER, which requests choose by their name",
    )
    served_model_name: list[str] | None = option(
        None, help="the names of the model; default: that of its folder, or its hub id"
    )
    host: str = option("127.0.0.1", help="the address to listen at")
    port: int = option(8000, minimum=0, help="the port; 0 for a free one")
    api_key_file: str | None = option(
        None, help="a file with the key that requests must have as Authorization: Bearer KEY"
    )
    max_connections: int = option(1_000, minimum=1, help="the maximum number of connections")
    shutdown_timeout: float = option(
        30.0, minimum=0, help="the seconds that requests may take to finish at SIGTERM"
    )

    def __post_init__(self) -> None:
        check_options(self)
        ServerSettings.__post_init__(self)
        if self.port > 65_535:
            raise OptionError("port", f"must be at most 65535, not {self.port}")
        self.adapter_folders()

    def adapter_folders(self) -> dict[str, str]:
        """Return the folders of adapters by their names.

        Raises:
            OptionError: an adapter has no name or no folder, or two have the same name.
        """
        folders: dict[str, str] = {}
        for value in self.adapter or []:
            name, equals, folder = value.partition("=")
            if not (name.strip() and equals and folder):
                raise OptionError("adapter", f"expected NAME=FOLDER, not {value!r}")
            if name in folders:
                raise OptionError("adapter", f"{name!r} is given twice")
            folders[name] = folder
        return folders

    def server_settings(self) -> ServerSettings:
        """Return the settings of the server; a loopback address is reached by its own names."""
        settings = ServerSettings(
            **{field.name: getattr(self, field.name) for field in fields(ServerSettings)}
        )
        if settings.allowed_hosts is None and self.host in LOOPBACK:
            settings.allowed_hosts = [*LOOPBACK, "[::1]"]
        return settings


def allow_no_temporary_folder() -> None:
    """Let libraries ask for the temporary folder on a read-only file system.

    dill, which torch imports if it is installed, asks when it is imported, and writes nothing.
    torch's compiler makes the folder of its cache when it is imported: it gets one that exists.
    """
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        tempfile.tempdir = "/tmp"
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", tempfile.tempdir)


def main(options: ServeOptions) -> int:
    """Serve until a signal ends it."""
    allow_no_temporary_folder()
    for package in ("starlette", "uvicorn", "prometheus_client"):
        require(package)
    from rerank_plugin.io.keys import read_key
    from rerank_plugin.reranker import Reranker
    from rerank_plugin.server.app import create_app
    from rerank_plugin.server.serve import Server, bind

    # What can fail fails before the model is loaded.
    api_key = read_key(options.api_key_file) if options.api_key_file else None
    if api_key is None and options.host not in LOOPBACK:
        logger.warning("anyone who reaches %s may use the model: see --api_key_file", options.host)
    with bind(options.host, options.port) as bound:
        reranker = Reranker(
            options.model_dir, adapters=options.adapter_folders() or None, **options.loading
        )
        app = create_app(
            reranker,
            names=options.served_model_name,
            api_key=api_key,
            settings=options.server_settings(),
        )
        server = Server(
            app,
            max_connections=options.max_connections,
            read_timeout=options.read_timeout,
            shutdown_timeout=options.shutdown_timeout,
        )
        server.serve_at(bound)
    return 0
