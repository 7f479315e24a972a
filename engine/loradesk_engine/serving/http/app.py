"""The routes, thin: what they do is in the other modules."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import FastAPI, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, PlainTextResponse, Response

from loradesk_engine.commands import Activate, AdapterSource, AddAdapter, RemoveAdapter
from loradesk_engine.serving.http import metrics as metrics_module
from loradesk_engine.serving.http.body import StrictRoute, refusal_of
from loradesk_engine.serving.http.dialect import ChatDialect, Dialect, TextDialect
from loradesk_engine.serving.http.docs_page import docs_page
from loradesk_engine.serving.http.feed import Feed, names_of
from loradesk_engine.serving.http.folders import allowed_folder
from loradesk_engine.serving.http.generation import Generation
from loradesk_engine.serving.http.metrics import Metrics
from loradesk_engine.serving.http.options import ServerOptions
from loradesk_engine.serving.http.refusal import CLIENT_GONE, ClientGoneError, Json, Refusal
from loradesk_engine.serving.http.requests import Job, chat_job, completion_job, need_known, scales
from loradesk_engine.serving.http.schemas import (
    ActivateBody,
    ChatBody,
    CompletionBody,
    ErrorBody,
    LoadAdapterBody,
    LoraScale,
    UnloadAdapterBody,
)
from loradesk_engine.serving.http.stream import EventStream, while_connected

ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorBody, "description": "A field is wrong; `param` names it"},
    401: {"model": ErrorBody, "description": "No key, or a wrong one"},
    403: {"model": ErrorBody, "description": "Host, Origin or path is not allowed"},
    404: {"model": ErrorBody, "description": "There is no such model or adapter"},
    408: {"model": ErrorBody, "description": "It took too long"},
    409: {"model": ErrorBody, "description": "Not while answers run"},
    413: {"model": ErrorBody, "description": "The body is too large"},
    415: {"model": ErrorBody, "description": "The body is not declared as JSON"},
    429: {"model": ErrorBody, "description": "Too many answers run or wait"},
    503: {"model": ErrorBody, "description": "No model is loaded, or the answer broke off"},
}


def build_app(feed: Feed, options: ServerOptions, metrics: Metrics) -> FastAPI:
    """The application without its guard."""
    app = FastAPI(
        title="Loradesk",
        summary="Models with LoRA and X-LoRA adapters, in the dialects of OpenAI, mistral.rs, vLLM and llama.cpp",
        version="1",
        docs_url=None,  # those pages load their scripts from another site
        redoc_url=None,
        redirect_slashes=False,
        responses=ERRORS,
        dependencies=[Security(HTTPBearer(auto_error=False, description="The server's key"))],
    )
    app.router.route_class = StrictRoute
    _add_error_handlers(app)
    _add_generation(app, feed, options)
    _add_models(app, feed)
    _add_adapters(app, feed, options)
    _add_service(app, feed, metrics)
    return app


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(Refusal)
    async def refused(request: Request, refusal: Refusal) -> Response:
        _note(request, refusal)
        return refusal.response

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        refusal = refusal_of(error)
        _note(request, refusal)
        return refusal.response

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        texts = {404: "There is no such route.", 405: "This route does not take this method."}
        text = texts.get(error.status_code, str(error.detail))
        refusal = Refusal(error.status_code, text, code="not_found", headers=error.headers)
        request.state.record.code = "not_found"
        return refusal.response

    @app.exception_handler(Exception)
    async def broken(_request: Request, _error: Exception) -> Response:
        return Refusal(500, "Internal error.", code="internal").response

    @app.exception_handler(ClientGoneError)
    async def gone(request: Request, _error: ClientGoneError) -> Response:
        request.state.record.note = request.state.record.note or "The client left."
        return Response(status_code=CLIENT_GONE)


def _note(request: Request, refusal: Refusal) -> None:
    request.state.record.note, request.state.record.code = refusal.detail, refusal.code or ""


def _add_generation(app: FastAPI, feed: Feed, options: ServerOptions) -> None:
    async def answer(request: Request, job: Job, dialect: Dialect) -> Response:
        record = request.state.record
        record.model = job.model
        headers = {"X-Loradesk-Ignored": ", ".join(job.ignored)} if job.ignored else {}
        generation = Generation(feed, job, options, record)
        if job.stream:
            await while_connected(request.receive, generation.__aenter__())

            async def chunks(running: Generation) -> AsyncIterator[Any]:
                async for index, event in running.events():
                    for chunk in dialect.chunks(index, event):
                        yield chunk
                for chunk in dialect.last():
                    yield chunk

            return EventStream(generation, chunks, headers)

        async def whole() -> dict[str, Any]:
            async with generation:
                async for index, event in generation.events():
                    dialect.take(index, event)
            return dialect.whole()

        return Json(await while_connected(request.receive, whole()), headers=headers)

    @app.post("/v1/chat/completions", tags=["OpenAI"], response_model=None)
    async def chat_completions(request: Request, body: ChatBody) -> Response:
        """Answer a conversation, whole or as a stream."""
        job = chat_job(body, feed.info, options)
        return await answer(request, job, ChatDialect(job))

    @app.post("/v1/completions", tags=["OpenAI"], response_model=None)
    async def completions(request: Request, body: CompletionBody) -> Response:
        """Continue texts or token ids, whole or as a stream."""
        job = completion_job(body, feed.info, options)
        return await answer(request, job, TextDialect(job))


def _add_models(app: FastAPI, feed: Feed) -> None:
    created = int(time.time())

    def models() -> list[dict[str, Any]]:
        info = feed.info
        if info is None:
            return []
        base = {"id": info.name, "object": "model", "created": created, "owned_by": "loradesk"}
        mine = [{**base, "id": name, "parent": info.name} for name in names_of(info) if name != info.name]
        return [{**base, "max_model_len": info.context}, *mine]

    @app.get("/v1/models", tags=["OpenAI"])
    async def list_models() -> Response:
        """The model, whose adapters are those that are active, and each adapter as a model with itself alone."""
        return Json({"object": "list", "data": models()})

    @app.get("/v1/models/{model:path}", tags=["OpenAI"])
    async def retrieve_model(model: str) -> Response:
        """One of them."""
        for entry in models():
            if entry["id"] == model:
                return Json(entry)
        raise Refusal(404, f"There is no model {model[:200]!r}.", param="model", code="model_not_found")


def _add_adapters(app: FastAPI, feed: Feed, options: ServerOptions) -> None:
    async def activate(weights: dict[str, float]) -> None:
        await feed.command(lambda tag: Activate(weights, tag), options.command_seconds)

    @app.post("/activate_adapters", tags=["mistral.rs"])
    async def activate_adapters(body: ActivateBody) -> Response:
        """Make these the active adapters; it counts from the next request on, running ones keep theirs."""
        weights = dict.fromkeys(body.adapter_names, 1.0)
        need_known(weights, names_of(feed.info), "adapter_names")
        await activate(weights)
        return Json({"adapter_names": list(weights)})

    @app.get("/lora-adapters", tags=["llama.cpp"])
    async def lora_adapters() -> Response:
        """The adapters with their ids and weights; 0 is inactive."""
        adapters = feed.info.adapters if feed.info is not None else ()
        return Json(
            [
                {"id": place, "name": item.name, "path": item.source, "scale": feed.active.get(item.name, 0.0)}
                for place, item in enumerate(adapters)
            ]
        )

    @app.post("/lora-adapters", tags=["llama.cpp"])
    async def set_lora_adapters(body: Annotated[list[LoraScale], Field(max_length=256)]) -> Response:
        """Set the weights; adapters that are not listed become inactive."""
        await activate(scales(body, names_of(feed.info)))
        return Json({"success": True})

    @app.post("/v1/load_lora_adapter", tags=["vLLM"])
    async def load_lora_adapter(body: LoadAdapterBody) -> Response:
        """Load a PEFT folder from below an adapter root; it starts inactive."""
        folder = allowed_folder(body.lora_path, options.adapter_roots)
        if body.lora_name in names_of(feed.info) or (feed.info is not None and body.lora_name == feed.info.name):
            raise Refusal(400, "This name is taken already.", param="lora_name", code="invalid_value")
        source = AdapterSource(body.lora_name, str(folder))
        await feed.command(lambda tag: AddAdapter(source, tag), options.command_seconds)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    @app.post("/v1/unload_lora_adapter", tags=["vLLM"])
    async def unload_lora_adapter(body: UnloadAdapterBody) -> Response:
        """Let go of an adapter."""
        if body.lora_name not in names_of(feed.info):
            raise Refusal(404, "There is no such adapter.", param="lora_name", code="adapter_not_found")
        await feed.command(lambda tag: RemoveAdapter(body.lora_name, tag), options.command_seconds)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")


def _add_service(app: FastAPI, feed: Feed, metrics: Metrics) -> None:
    @app.get("/health", tags=["service"])
    async def health() -> Response:
        """Whether the server can answer; needs no key and tells nothing else."""
        if feed.closed:
            return Json({"status": "closed"}, 503)
        return Json({"status": "ok" if feed.info is not None else "no model"})

    @app.get("/metrics", tags=["service"])
    async def prometheus(request: Request) -> Response:
        """Counters in Prometheus' text format."""
        connections = getattr(request.state, "connections", ())
        text = metrics.render(running=feed.running, connections=len(connections), loaded=feed.info is not None)
        return Response(text, headers={"content-type": metrics_module.CONTENT_TYPE})

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        """The routes as a page without scripts."""
        headers = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"}
        return HTMLResponse(docs_page(app.openapi()), headers=headers)
