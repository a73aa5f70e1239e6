"""The endpoints that describe a server: its models, its limits, and whether it is well."""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from rerank_plugin import __version__
from rerank_plugin.engine.scorer import TOKEN_BUDGET
from rerank_plugin.server.access import check_key
from rerank_plugin.server.formats.jina import JINA
from rerank_plugin.server.ranking_endpoint import Service, refused
from rerank_plugin.server.refusals import RefusedError


class Description:
    """Describes a server.

    Args:
        service: The model and the limits.
        openapi: The OpenAPI description.
    """

    def __init__(self, service: Service, openapi: dict[str, Any]) -> None:
        self.service = service
        self._openapi = openapi

    async def health(self, request: Request) -> Response:
        """Answer that the model is loaded: nothing is served before."""
        return JSONResponse({"status": "ok"})

    async def openapi(self, request: Request) -> Response:
        """Return the OpenAPI description."""
        return JSONResponse(self._openapi)

    async def models(self, request: Request) -> Response:
        """List the names of models, as OpenAI's endpoint does."""
        models = [
            {"id": name, "object": "model", "created": 0, "owned_by": "rerank-plugin"}
            for name in self.service.model.adapters
        ]
        return self._to_those_with_a_key(request, {"object": "list", "data": models})

    async def info(self, request: Request) -> Response:
        """Describe the model and the limits in the fields of text-embeddings-inference."""
        reranker, settings = self.service.model.reranker, self.service.settings
        budget = reranker.options["token_budget"] or TOKEN_BUDGET.get(reranker.device.type)
        described = {
            "model_id": self.service.model.find(None),
            "model_sha": None,
            "model_dtype": str(reranker.dtype).removeprefix("torch."),
            "model_type": {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}},
            "max_input_length": reranker.max_length,
            "max_client_batch_size": settings.max_documents,
            "max_concurrent_requests": settings.max_waiting_pairs,
            "max_batch_tokens": budget,
            "auto_truncate": True,
            "tokenization_workers": 1,
            "version": __version__,
            "models": self.service.model.described(),
        }
        return self._to_those_with_a_key(request, described)

    async def metrics(self, request: Request) -> Response:
        """Return the measurements in the format of Prometheus."""
        try:
            check_key(request, self.service.api_key)
        except RefusedError as error:
            return refused(error, [JINA])
        return self.service.metrics.response()

    def _to_those_with_a_key(self, request: Request, body: dict[str, Any]) -> Response:
        try:
            check_key(request, self.service.api_key)
        except RefusedError as error:
            return refused(error, [JINA])
        return JSONResponse(body)
