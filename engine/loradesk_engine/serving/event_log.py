"""What the worker is asked and what comes of it, as lines of the log: names, counts and times, never a text."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from loradesk_engine.commands import ChatRequest, Command, CompletionRequest, Estimate, Load
from loradesk_engine.events import (
    AdaptersActivated,
    AdaptersChanged,
    CommandFailed,
    Event,
    LoadCancelled,
    LoadFailed,
    ModelInfo,
    ModelLoaded,
    ModelUnloaded,
    Problem,
    RequestFailed,
    RequestFinished,
    RequestStarted,
    WorkerClosed,
    WorkerReady,
)
from loradesk_engine.log.redaction import protect, protect_texts, without_values

logger = logging.getLogger(__name__)

SHOWN_ID = 8  # characters of a request's id


def note_command(command: Command) -> None:
    """Log a command, and keep what is secret in it out of the log from now on."""
    match command:
        case Load(settings) | Estimate(settings):
            protect(settings.token)
        case ChatRequest(messages=messages):
            protect_texts(message.content for message in messages)
        case CompletionRequest(prompt=str(prompt)):
            protect_texts([prompt])
    if isinstance(command, Load):
        settings = command.settings
        logger.info(
            "Load of %s begins: mode %s, device %s, type %s, quantize %s",
            *(settings.base, settings.mode, settings.device, settings.dtype, settings.quantize),
        )
    else:
        logger.debug("Command %s", type(command).__name__)


def note_event(event: Event) -> None:
    """Log an event, if it is worth a line."""
    match event:
        case WorkerReady(version, devices, seconds):
            logger.info("torch %s imported in %.2f s; devices: %s", version, seconds, ", ".join(devices))
        case ModelLoaded(info):
            _note_loaded(info)
        case LoadFailed(problem):
            logger.warning("The load failed: %s", _problem(problem))
        case LoadCancelled():
            logger.info("The load was cancelled")
        case ModelUnloaded():
            logger.info("The model was unloaded")
        case AdaptersActivated(weights):
            logger.info("Active adapters: %s", _weights(weights))
        case AdaptersChanged(adapters):
            logger.info("Loaded adapters: %s", ", ".join(adapter.name for adapter in adapters) or "none")
        case CommandFailed(problem):
            logger.warning("A command failed: %s", _problem(problem))
        case RequestStarted() | RequestFinished() | RequestFailed():
            _note_request(event)
        case WorkerClosed():
            logger.info("The engine has ended")


def _note_loaded(info: ModelInfo) -> None:
    logger.info(
        "Loaded %s: %s, %s, %s %s, context %d, adapters: %s, in %.2f s",
        *(info.name, info.architecture, info.mode, info.device, info.dtype, info.context),
        *(", ".join(adapter.name for adapter in info.adapters) or "none", info.load_seconds),
    )
    for warning in info.warnings:
        logger.warning("%s: %s", info.name, warning)


def _note_request(event: RequestStarted | RequestFinished | RequestFailed) -> None:
    name = event.request_id[:SHOWN_ID]
    match event:
        case RequestStarted():
            logger.info(
                "Request %s: %d prompt tokens, %d of them from the cache; adapters: %s",
                *(name, event.prompt_tokens, event.cached_tokens, _weights(event.weights)),
            )
        case RequestFinished():
            protect_texts([event.text])
            guesses = f", look-ahead {event.look_ahead.rate:.0%}" if event.look_ahead is not None else ""
            logger.info(
                "Request %s: %d tokens, the first after %.3f s, %.1f tokens/s%s, ended by %s",
                *(name, event.completion_tokens, event.first_token_seconds, event.tokens_per_second),
                *(guesses, event.finish_reason),
            )
        case RequestFailed():
            # The problem may quote a token or a message: its kind and field have to do.
            field = f", {event.problem.field}" if event.problem.field else ""
            logger.warning("Request %s failed: %s%s", name, event.problem.kind, field)


def _problem(problem: Problem) -> str:
    return f"{problem.kind}: {without_values(str(problem))}"


def _weights(weights: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {weight:g}" for name, weight in weights.items()) or "none"
