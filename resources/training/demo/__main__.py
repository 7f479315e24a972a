"""`python -m training.demo`: trains the whole pack, measures it and writes its card."""

import argparse
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import torch

from . import corpus, evaluate, pack
from . import tokenizer as tokenizer_module
from .adapters import train_adapters
from .base import round_weights, train_base
from .corpus import Rows
from .loop import Batches, Schedule
from .model import Decoder, Shape
from .xlora import train_xlora

SCHEDULES = {
    "base": Schedule(steps=6000, batch=64, rate=2e-3, weight_decay=0.1, warmup=200),
    "adapters": Schedule(steps=7000, batch=64, rate=3e-3, warmup=100),
    "xlora": Schedule(steps=700, batch=48, rate=3e-3, warmup=50),
}
OUT = Path("resources/loradesk_resources/demo")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the pack")
    parser.add_argument(
        "--start",
        choices=SCHEDULES,
        default="base",
        help="first stage to train; what comes before is read from the folder",
    )
    parser.add_argument("--scale", type=float, default=1.0, help="share of steps and text, for a quick trial")
    parser.add_argument("--batch", type=int, help="rows a step, in place of the schedules'")
    parser.add_argument("--seconds", type=float, nargs=3, default=[float("inf")] * 3, help="limits of the stages")
    parser.add_argument("--items", type=int, default=300, help="held-out items a skill")
    return parser.parse_args()


def main() -> None:
    a = parse()
    begin = time.monotonic()

    def say(text: str) -> None:
        print(f"{text} after {time.monotonic() - begin:.0f} s", flush=True)

    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    stages = list(SCHEDULES)[list(SCHEDULES).index(a.start) :]
    if "base" in stages:
        tokenizer = tokenizer_module.train(conversations=max(2000, int(30_000 * a.scale)))
        say("tokenizer")
    else:
        tokenizer = pack.read_tokenizer(a.out)
    schedules = {
        stage: replace(s, steps=max(4, int(s.steps * a.scale)), batch=a.batch or s.batch, seconds=limit)
        for (stage, s), limit in zip(SCHEDULES.items(), a.seconds, strict=True)
    }
    workers = ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), corpus.start_worker, (tokenizer.to_str(),))
    with workers as pool:
        # All text is ordered at once: that of the later stages is made while the first one trains.
        ordered = {stage: corpus.submit(pool, stage, a.scale) for stage in stages}

        def batches(stage: str) -> Batches:
            rows = Rows.join([future.result() for future in ordered.pop(stage)])
            say(f"{stage}: {rows.ids.size / 1e6:.0f} M tokens of text")
            return Batches(rows, schedules[stage].batch, device, seed=1)

        if "base" in stages:
            model = Decoder(replace(Shape(), vocabulary=tokenizer.get_vocab_size())).to(device)
            train_base(model, batches("base"), schedules["base"])
            round_weights(model, pack.BASE_DTYPE)
            pack.write_base(a.out, model, tokenizer)
        if "adapters" in stages:
            model = pack.read_model(a.out, device, adapters=False)
            train_adapters(model, batches("adapters"), schedules["adapters"])
            pack.write_adapters(a.out, model)
        model = pack.read_model(a.out, device)
        classifier = train_xlora(model, batches("xlora"), schedules["xlora"])
    pack.write_classifier(a.out, model, classifier)
    pack.write_orderings(a.out, model)
    say("trained")

    results = evaluate.measure(evaluate.Pack.read(a.out, device), a.items)
    evaluate.write(a.out, results)
    print(evaluate.table(results))
    say("done")


if __name__ == "__main__":
    main()
