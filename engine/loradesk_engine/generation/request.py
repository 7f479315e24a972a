"""From a request to the token sequence that answers it."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from loradesk_engine.commands import ChatRequest, CompletionRequest
from loradesk_engine.errors import ContextLengthError, RequestError
from loradesk_engine.formats.tokenizer import TextStream, Tokenizer
from loradesk_engine.generation.sequence import AdapterState, TokenSequence, XLoraState
from loradesk_engine.generation.stop import StopStrings
from loradesk_engine.model.decoder import Decoder

AnyRequest = ChatRequest | CompletionRequest


def checked_prompt(request: AnyRequest, tokenizer: Tokenizer, vocabulary: int, context: int) -> list[int]:
    """The prompt's token ids, after a check of every token id in the request.

    Args:
        vocabulary: number of tokens that the model has an embedding for.
        context: maximum length of a sequence in tokens.

    Raises:
        RequestError, ContextLengthError, TemplateError: the request cannot be answered.
    """
    tokens = _prompt(request, tokenizer, vocabulary, context)
    sampling = request.sampling
    for field, ids in (("logit_bias", sampling.logit_bias), ("stop_token_ids", sampling.stop_token_ids)):
        _refuse_unknown(ids, field, tokenizer, vocabulary)
    return tokens


def make_sequence(
    request: AnyRequest,
    tokens: list[int],
    state: AdapterState,
    tokenizer: Tokenizer,
    decoder: Decoder,
    context: int,
    *,
    xlora: bool,
) -> TokenSequence:
    """The sequence of a request.

    Args:
        tokens: its checked prompt.
        state: the adapters it starts with.
        context: maximum length of a sequence in tokens.
    """
    sampling = request.sampling
    ends = () if sampling.ignore_end else decoder.config.eos_token_ids
    generator = torch.Generator(decoder.device)
    if sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(sampling.seed)
    return TokenSequence(
        request_id=request.request_id,
        tokens=tokens,
        prompt_length=len(tokens),
        limit=min(context, len(tokens) + (sampling.max_tokens or context)),
        sampling=sampling,
        stop_ids=frozenset((*ends, *sampling.stop_token_ids)),
        state=state,
        follow_activation=request.follow_activation and request.adapters is None,
        want_scalings=request.want_scalings,
        stream=TextStream(tokenizer),
        stops=StopStrings(sampling.stop),
        generator=generator,
        xlora=XLoraState() if xlora else None,
    )


def _prompt(request: AnyRequest, tokenizer: Tokenizer, vocabulary: int, context: int) -> list[int]:
    if isinstance(request, ChatRequest):
        tokens = tokenizer.chat_ids(request.messages)
    elif isinstance(request.prompt, str):
        tokens = tokenizer.encode(request.prompt, special_tokens=True)
    else:
        tokens = list(request.prompt)
    if not tokens:
        raise RequestError("The prompt is empty.", field="prompt")
    field = "messages" if isinstance(request, ChatRequest) else "prompt"
    _refuse_unknown(tokens, field, tokenizer, vocabulary)
    if len(tokens) >= context:
        raise ContextLengthError(
            f"The prompt has {len(tokens):,} tokens, the context {context:,}.",
            field=field,
            remedy="Shorten the conversation, or load the model with a longer context.",
        )
    return tokens


def _refuse_unknown(ids: Iterable[int], field: str, tokenizer: Tokenizer, vocabulary: int) -> None:
    """Refuse token ids that the model has no embedding for; a tokenizer may have some (Gemma 3's for images)."""
    for token in ids:
        if not 0 <= token < vocabulary:
            text = tokenizer.token_text(token) if 0 <= token < 2**32 else ""
            named = f"{text!r} (id {token})" if text else f"id {token}"
            raise RequestError(
                f"The token {named} is beyond the model's vocabulary of {vocabulary:,}.",
                field=field,
                remedy="Leave it out: this model has never seen it.",
            )
