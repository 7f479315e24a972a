"""The X-LoRA classifier over the four frozen adapters.

Two forwards a batch, as when it runs: the plain base gives the hidden states, the classifier turns them into scalings
for every token and layer, and the second forward answers under those scalings. The loss of the answer trains the
classifier; a second loss asks that the mean over the layers points at the expert of the token, so that what the
classifier does can be read.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .corpus import LEARN, NOWHERE, READ, READ_FIRST
from .loop import Batches, Schedule, compiled, train
from .model import Classifier, Decoder
from .tasks import EXPERTS
from .text import CHAT

SIZE = 128
DROPOUT = 0.1
TEMPERATURE = 1.0
ROUTE_WEIGHT = 0.2
READ_SHARE = 0.3  # of the routing loss, for what the user says


def new_classifier(model: Decoder) -> Classifier:
    classifier = Classifier(model.shape.hidden, len(model.linears()), len(EXPERTS), SIZE, DROPOUT, TEMPERATURE)
    return classifier.to(model.embed_tokens.weight.device)


def train_xlora(model: Decoder, batches: Batches, schedule: Schedule) -> Classifier:
    device = model.embed_tokens.weight.device
    model.requires_grad_(False)
    classifier = new_classifier(model)
    count = len(EXPERTS)

    def loss_of(ids: Tensor, route: Tensor, worth: Tensor, _active: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            hidden = model.hidden_states(ids)
        scalings = classifier(hidden)
        logits = model(ids, scalings)[:, :-1]
        each = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
        says = (worth[:, :-1].flatten() == LEARN).float()
        language = (each * says).sum() / says.sum().clamp(min=1)

        mean = scalings.mean(dim=2)
        expert = F.one_hot((route - 1).clamp(0, count - 1), count).float()
        aim = torch.where(
            (route == CHAT)[..., None], torch.full_like(expert, 1 / count), expert
        )  # small talk has no expert
        weight = (worth == LEARN).float() + READ_SHARE * ((worth == READ) | (worth == READ_FIRST)).float()
        weight = weight * (route != NOWHERE)
        routing = -(aim * torch.log(mean + 1e-6)).sum(-1)
        routing = (routing * weight).sum() / weight.sum().clamp(min=1)

        answers = ((worth == LEARN) & (route != CHAT) & (route != NOWHERE)).float()
        right = ((mean * expert).sum(-1) * answers).sum() / answers.sum().clamp(min=1)
        return language + ROUTE_WEIGHT * routing, torch.stack((language, routing, right)).detach()

    train("xlora", classifier.parameters(), batches, schedule, compiled(loss_of, device))
    return classifier.eval()
