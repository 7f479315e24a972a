"""The training loop that all three stages share."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .corpus import Rows


@dataclass(frozen=True)
class Schedule:
    steps: int
    batch: int  # rows a step
    rate: float  # the highest learning rate
    weight_decay: float = 0.0
    warmup: int = 100
    seconds: float = math.inf  # the rate falls in time for this limit, if the steps would take longer


class Batches:
    """Random rows, all of them once before any again, on the device of the model."""

    def __init__(self, rows: Rows, batch: int, device: torch.device, seed: int):
        self.arrays = [
            torch.from_numpy(a.astype("int32")).to(device) for a in (rows.ids, rows.route, rows.worth, rows.active)
        ]
        self.batch = batch
        self.generator = torch.Generator().manual_seed(seed)
        self.order = torch.empty(0, dtype=torch.long)

    def next(self) -> list[Tensor]:
        if len(self.order) < self.batch:
            count = len(self.arrays[0])
            repeats = -(-self.batch // count)
            self.order = torch.cat([torch.randperm(count, generator=self.generator) for _ in range(repeats)])
        chosen, self.order = self.order[: self.batch], self.order[self.batch :]
        return [a[chosen.to(a.device)].long() for a in self.arrays]


def train(
    name: str,
    parameters: Iterable[nn.Parameter],
    batches: Batches,
    schedule: Schedule,
    loss_of: Callable[..., tuple[Tensor, Tensor]],
) -> None:
    """Minimizes the first of the two values of `loss_of(ids, route, worth, active)`; the second is a vector to log."""
    parameters = list(parameters)
    device = parameters[0].device
    matrices = [p for p in parameters if p.dim() >= 2]
    vectors = [p for p in parameters if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": schedule.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=schedule.rate,
        betas=(0.9, 0.97),
        fused=device.type == "cuda",
    )
    begin = time.monotonic()
    logged = 0
    for step in range(schedule.steps):
        if step == 3:
            begin = time.monotonic()  # the limit does not count compilation
        done = max(step / schedule.steps, (time.monotonic() - begin) / schedule.seconds if step > 2 else 0.0)
        if done >= 1:
            break
        rate = (
            schedule.rate
            * min(1.0, (step + 1) / schedule.warmup)
            * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss, values = loss_of(*batches.next())
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if done * 12 >= logged or step == schedule.steps - 1:
            logged += 1
            shown = " ".join(f"{v:.3f}" for v in values.detach().float().tolist())
            print(f"{name} step {step} of {schedule.steps}: {shown} ({time.monotonic() - begin:.0f} s)", flush=True)
    print(f"{name}: {step + 1} steps in {time.monotonic() - begin:.0f} s", flush=True)


def compiled(function: Callable, device: torch.device) -> Callable:
    return torch.compile(function, dynamic=False) if device.type == "cuda" else function
