"""Asks the product's own engine the held-out items of a pack: `python -m training.demo.engine_check [--items 100]`

`evaluate` measures a pack with the code it was trained with; this is the second opinion, on a CPU, and it times what a
user
would see: load time, tokens per second, and whether the GGUF file answers like the safetensors.
"""

from __future__ import annotations

import argparse
from random import Random
from statistics import median

from loradesk_engine import Engine
from loradesk_resources import resource_path

from .evaluate import OPENERS, SEED
from .tasks import SKILLS

TOKENS = 160


def exact(engine: Engine, adapters: list[str] | None, tasks: list) -> float:
    """Share of tasks that are answered word for word, all asked at once."""
    answers = [engine.chat(task.question, adapters=adapters, max_tokens=TOKENS) for task in tasks]
    return sum(answer.text == task.answer for answer, task in zip(answers, tasks, strict=True)) / len(tasks)


def expert_share(engine: Engine, expert: int, questions: list[str]) -> float:
    """Mean scaling of one expert over layers and the tokens of the answers."""
    means = []
    for question in questions:
        answer = engine.chat(question, max_tokens=TOKENS)
        if answer.text and answer.scalings is not None and answer.started is not None:
            first = answer.started.prompt_tokens - 1 - answer.scalings_start
            means.append(float(answer.scalings[first:, :, expert].mean()))
    return sum(means) / len(means)


def speed(engine: Engine, adapters: list[str] | None) -> float:
    """Median tokens per second of three answers."""
    speeds = []
    for question in ("tell me a story about a fox", "What is 17 + 25?", "What is the capital of Japan?"):
        answer = engine.chat(question, adapters=adapters, max_tokens=200, ignore_end=True)
        assert answer.text
        assert answer.finished is not None
        speeds.append(answer.finished.tokens_per_second)
    return median(speeds)


def differing(questions: list[str]) -> list[str]:
    """Of these, the ones that the GGUF file answers otherwise than the safetensors (greedy, 48 tokens)."""
    texts = []
    for base in ("base", "base-q8_0.gguf"):
        with Engine.load(str(resource_path("demo", base))) as engine:
            texts.append([engine.chat(question, max_tokens=48).text for question in questions])
    return [question for question, one, two in zip(questions, *texts, strict=True) if one != two]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m training.demo.engine_check", description=__doc__)
    parser.add_argument("--items", type=int, default=100)
    items = parser.parse_args().items
    tasks = {skill.name: [skill.held_out(Random(SEED + 100 + n)) for n in range(items)] for skill in SKILLS}
    print("| skill | base | adapter alone | X-LoRA | right expert's scaling |\n| --- | --- | --- | --- | --- |")
    with Engine.demo("lora") as lora, Engine.demo("xlora") as xlora:
        for expert, (name, some) in enumerate(tasks.items()):
            share = expert_share(xlora, expert, [task.question for task in some[:20]])
            if name == "bard":
                print(f"| {name} | - | - | - | {share:.2f} |")
                continue
            figures = (exact(lora, [], some), exact(lora, [name], some), exact(xlora, None, some))
            print(f"| {name} | " + " | ".join(f"{figure:.1%}" for figure in figures) + f" | {share:.2f} |")
        print(f"\nloaded in {lora.info.load_seconds:.2f} s (LoRA) and {xlora.info.load_seconds:.2f} s (X-LoRA)")
    for mode, adapters in (("lora", []), ("lora", ["arithmetic"]), ("xlora", None)):
        with Engine.demo(mode) as engine:  # type: ignore[arg-type]
            what = "X-LoRA" if mode == "xlora" else "one adapter" if adapters else "base"
            print(f"{what}: {speed(engine, adapters):.0f} tokens/s")
    questions = [*OPENERS, *(task.question for some in tasks.values() for task in some[:10])]
    different = differing(questions)
    print(f"GGUF and safetensors: {len(different)} of {len(questions)} base answers differ")
    for question in different:
        print(f"- {question}")


if __name__ == "__main__":
    main()
