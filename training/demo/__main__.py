"""`python -m training.demo --out FOLDER`: trains the whole pack, measures it and writes its card."""

import argparse
import json
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
    "base": Schedule(steps=3600, batch=64, rate=2e-3, weight_decay=0.1, warmup=200),
    "adapters": Schedule(steps=3000, batch=64, rate=3e-3, warmup=100),
    "xlora": Schedule(steps=500, batch=48, rate=3e-3, warmup=50),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the pack")
    parser.add_argument(
        "--base-from", type=Path, help="take the base and tokenizer of this pack instead of training them"
    )
    parser.add_argument(
        "--scale", type=float, default=1.0, help="share of the steps and of the text, for a quick trial"
    )
    parser.add_argument("--batch", type=int, help="rows a step, in place of the schedules'")
    parser.add_argument(
        "--seconds", type=float, nargs=3, default=[float("inf")] * 3, help="limits for base, adapters and X-LoRA"
    )
    parser.add_argument("--items", type=int, default=300, help="held-out items a skill")
    parser.add_argument("--layers", type=int, default=Shape().layers)
    a = parser.parse_args()

    begin = time.monotonic()
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = (
        pack.read_tokenizer(a.base_from)
        if a.base_from
        else tokenizer_module.train(conversations=max(2000, int(30_000 * a.scale)))
    )
    print(f"tokenizer after {time.monotonic() - begin:.0f} s", flush=True)
    schedules = {
        stage: replace(s, steps=max(4, int(s.steps * a.scale)), batch=a.batch or s.batch, seconds=limit)
        for (stage, s), limit in zip(SCHEDULES.items(), a.seconds, strict=True)
    }
    workers = ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), corpus.start_worker, (tokenizer.to_str(),))
    with workers as pool:
        # All text is ordered at once: that of the later stages is made while the first one trains.
        ordered = {
            stage: corpus.submit(pool, stage, a.scale) for stage in SCHEDULES if not (stage == "base" and a.base_from)
        }

        def batches(stage: str) -> Batches:
            rows = Rows.join([future.result() for future in ordered.pop(stage)])
            print(
                f"{stage}: {rows.ids.size / 1e6:.0f} M tokens of text after {time.monotonic() - begin:.0f} s",
                flush=True,
            )
            return Batches(rows, schedules[stage].batch, device, seed=1)

        if a.base_from:
            model = pack.read_model(a.base_from, device, adapters=False)
        else:
            model = Decoder(replace(Shape(), layers=a.layers, vocabulary=tokenizer.get_vocab_size())).to(device)
            train_base(model, batches("base"), schedules["base"])
            round_weights(model, pack.BASE_DTYPE)
        pack.write_base(a.out, model, tokenizer)
        train_adapters(model, batches("adapters"), schedules["adapters"])
        pack.write_adapters(a.out, model)
        model = pack.read_model(a.out, device)
        classifier = train_xlora(model, batches("xlora"), schedules["xlora"])
    pack.write_classifier(a.out, model, classifier)
    pack.write_orderings(a.out, model)
    print(f"trained after {time.monotonic() - begin:.0f} s", flush=True)

    results = evaluate.measure(evaluate.Pack.read(a.out, device), a.items)
    results["seconds"] = round(time.monotonic() - begin)
    (a.out / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False), "utf-8")
    print(evaluate.table(results))
    print(f"done after {time.monotonic() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()
