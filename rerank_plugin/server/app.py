"""The application: which path is answered by what."""

from collections.abc import Sequence
from typing import Any

from rerank_plugin.extras import MissingPackageError

try:
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.middleware.cors import CORSMiddleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route
except ModuleNotFoundError as error:
    raise MissingPackageError("starlette") from error

from rerank_plugin.reranker import Reranker
from rerank_plugin.server.admission import Admission
from rerank_plugin.server.description import Description
from rerank_plugin.server.formats.base import Format
from rerank_plugin.server.formats.cohere import COHERE
from rerank_plugin.server.formats.jina import JINA
from rerank_plugin.server.formats.tei import TEI
from rerank_plugin.server.metrics import Metrics
from rerank_plugin.server.openapi import openapi
from rerank_plugin.server.page import Page
from rerank_plugin.server.ranking_endpoint import RankingEndpoint, Service
from rerank_plugin.server.served_model import ServedModel
from rerank_plugin.server.settings import ServerSettings

#: The formats of each path that ranks, by the field that only they have.
RANKING: dict[str, dict[str, Format]] = {
    "/v1/rerank": {"documents": JINA},
    "/v2/rerank": {"documents": COHERE},
    "/rerank": {"documents": JINA, "texts": TEI},
}


def create_app(
    reranker: Reranker,
    *,
    names: list[str] | None = None,
    api_key: str | None = None,
    settings: ServerSettings | None = None,
) -> Starlette:
    """Return an ASGI application that ranks with a model, for one event loop.

    Args:
        reranker: The model; its `adapters` are chosen by their names.
        names: The names of the model without an adapter; default the one of its folder or hub id.
        api_key: The bearer key that requests must have; None for none.
        settings: The limits.

    Raises:
        InputError: a name stands for two models.
    """
    settings = settings or ServerSettings()
    admission = Admission(settings.max_waiting_pairs, settings.max_waiting_bytes)
    model = ServedModel(reranker, names)
    service = Service(model, settings, api_key, admission, Metrics(admission))
    description = Description(service, openapi(RANKING, has_key=api_key is not None))
    routes = [
        *(
            Route(path, RankingEndpoint(service, path, formats).answer, methods=["POST"])
            for path, formats in RANKING.items()
        ),
        Route("/", Page().answer),
        Route("/v1/models", description.models),
        Route("/health", description.health),
        Route("/info", description.info),
        Route("/metrics", description.metrics),
        Route("/openapi.json", description.openapi),
    ]
    return Starlette(
        routes=routes,
        middleware=list(middleware(settings)),
        exception_handlers={HTTPException: not_here},
    )


def middleware(settings: ServerSettings) -> Sequence[Middleware]:
    """Return what checks requests before they reach an endpoint."""
    used = [Middleware(TrustedHostMiddleware, allowed_hosts=settings.allowed_hosts or ["*"])]
    if settings.cors_origins:
        cors = Middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )
        used.append(cors)
    return used


async def not_here(_: Request, error: Any) -> Response:
    """Answer a request for another path, or with another method."""
    detail = "there is nothing at this path" if error.status_code == 404 else error.detail
    return JSONResponse({"detail": detail}, error.status_code, headers=error.headers)
