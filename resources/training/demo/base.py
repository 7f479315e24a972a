"""The base model: small talk and stories, and a friendly hint where a skill is missing."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .corpus import LEARN, NOWHERE, READ, READ_FIRST
from .loop import Batches, Schedule, compiled, train
from .model import Decoder
from .tasks import EXPERTS

READ_WEIGHT = 0.1  # what the user says is worth reading, but not worth a model's whole mind
PROBE_WEIGHT = 0.1


def train_base(model: Decoder, batches: Batches, schedule: Schedule) -> None:
    """Trains the base on what it should say; never on an answer that an adapter gives.

    A second, small loss asks the last hidden state which skill the conversation is about, also inside answers that
    only adapters give: a large model knows that from its training text, and X-LoRA's classifier reads it there. The
    probe is thrown away afterwards.
    """
    device = model.embed_tokens.weight.device
    probe = nn.Linear(model.shape.hidden, len(EXPERTS) + 1).to(device)

    def loss_of(ids: Tensor, route: Tensor, worth: Tensor, _active: Tensor) -> tuple[Tensor, Tensor]:
        hidden = model.hidden_states(ids)
        logits = F.linear(hidden, model.embed_tokens.weight)[:, :-1]
        each = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
        worth_of = worth[:, :-1].flatten()
        says = (worth_of == LEARN).float()
        reads = ((worth_of == READ) | (worth_of == READ_FIRST)).float()
        language = (each * says).sum() / says.sum().clamp(min=1)
        reading = (each * reads).sum() / reads.sum().clamp(min=1)
        target = torch.where((route == NOWHERE) | (worth == READ_FIRST), -100, route)
        probed = F.cross_entropy(probe(hidden).flatten(0, 1).float(), target.flatten())
        return language + READ_WEIGHT * reading + PROBE_WEIGHT * probed, torch.stack(
            (language, reading, probed)
        ).detach()

    model.initialize()
    train("base", [*model.parameters(), *probe.parameters()], batches, schedule, compiled(loss_of, device))


@torch.no_grad()
def round_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """To the precision of the file: what is trained on top of it then fits what will be loaded."""
    for parameter in model.parameters():
        parameter.copy_(parameter.to(dtype).float())
