"""The four LoRA adapters, trained at once on the frozen base.

A batch holds rows for every way in which the adapters will be used: one alone, several at full weight, and a mixture
that changes from token to token as X-LoRA's does. What an adapter learns therefore also holds in company. Adapters
that are off in a row get no gradient from it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .corpus import LEARN, NOWHERE, READ_FIRST, ROUTED
from .loop import Batches, Schedule, compiled, train
from .model import AdapterShape, Decoder
from .tasks import EXPERTS
from .text import CHAT

# Ranks as the skills need them; mixed on purpose: a mixture does not ask for equal ones.
SHAPES = (
    AdapterShape("arithmetic", 32, 64),
    AdapterShape("capitals", 16, 32),
    AdapterShape("json", 16, 32),
    AdapterShape("bard", 8, 16),
)
assert tuple(s.name for s in SHAPES) == EXPERTS


def some_mixture(like: Tensor) -> Tensor:
    """Random scalings that sum to one, for every token."""
    drawn = -torch.log(torch.rand(*like.shape, len(EXPERTS), device=like.device).clamp(min=1e-9))
    return drawn / drawn.sum(-1, keepdim=True)


def scalings_for(route: Tensor, worth: Tensor, active: Tensor) -> Tensor:
    """[batch, tokens, 1, adapters]: full weight for what is on; if routed, nearly all for the token's expert."""
    count = len(EXPERTS)
    numbers = torch.arange(count, device=route.device)
    switched = (active[..., None] >> numbers & 1).float()
    switched = switched * (
        0.85 + 0.25 * torch.rand(len(route), 1, count, device=route.device)
    )  # a fader is rarely quite at one
    expert = F.one_hot((route - 1).clamp(0, count - 1), count).float()
    nobody = ((route == CHAT) | (route == NOWHERE))[..., None]
    aim = torch.where(nobody, torch.full_like(expert, 1 / count), expert)
    doubt = 0.3 * torch.rand(len(route), 1, device=route.device).expand_as(route)
    doubt = torch.where((worth == READ_FIRST) | (route == NOWHERE), torch.rand_like(doubt), doubt)[..., None]
    routed = (1 - doubt) * aim + doubt * some_mixture(route)
    return torch.where((active == ROUTED)[..., None], routed, switched)[:, :, None]


def train_adapters(model: Decoder, batches: Batches, schedule: Schedule) -> None:
    device = model.embed_tokens.weight.device
    model.add_adapters(SHAPES)

    def loss_of(ids: Tensor, route: Tensor, worth: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
        logits = model(ids, scalings_for(route, worth, active))[:, :-1]
        each = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
        says = (worth[:, :-1].flatten() == LEARN).float()
        loss = (each * says).sum() / says.sum().clamp(min=1)
        owner = route[:, :-1].flatten()
        masks = [says * (owner == i) for i in range(len(EXPERTS) + 1)]
        return loss, torch.stack([loss, *((each * m).sum() / m.sum().clamp(min=1) for m in masks)]).detach()

    train("adapters", [p for p in model.parameters() if p.requires_grad], batches, schedule, compiled(loss_of, device))
