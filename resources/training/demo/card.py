"""The model card of a pack, from its `results.json`. `python -m training.demo.card FOLDER`"""

import argparse
import json
from pathlib import Path

from .evaluate import table
from .tasks import EXPERTS

CARD = """---
license: apache-2.0
language: en
library_name: loradesk
---
# Loradesk demo pack

A language model of {parameters:.1f} million parameters, four LoRA adapters that each add a skill it lacks, and an
X-LoRA classifier that routes every token to the right one. Loradesk ships with the pack and opens it by default.
The model makes small talk and writes short stories. It is not useful for anything else, and its facts are unreliable.

| file | contents |
| --- | --- |
| `base/` | the chat model: Llama architecture, bfloat16, byte-level BPE of 4,096 tokens, context {context} |
| `base-q8_0.gguf` | the same, quantized, with tokenizer and chat template |
| `adapters/` | `arithmetic` (rank 32), `capitals` (16), `json` (16), `bard` (8): PEFT, float16, all linears |
| `xlora/` | the classifier, in the format of xlora and mistral.rs: depth 2, layer-wise, softmax |
| `ordering/` | ordering files: `lora.json` (adapters loaded, none active at first) and `xlora.json` |
| `results.json` | the data of the tables below, with wrong answers and scalings token by token |

## Results

Each skill has {items} held-out items, decoded greedily. "Exact" means that the whole answer matches. Perplexity is over
the answer's tokens.

{table}

"All four on" has every adapter at weight 1. The scaling is the mean over the layers and the tokens of the
answer; the scalings of all experts sum to 1.0.

Held out for each skill:

- *arithmetic*: pairs of numbers for sums and differences (up to 99; for sums in either order). The small products are
  memorized, so for these a certain wording is held out.
- *capitals*: wordings of the question, since a fact cannot be guessed. After earlier runs had been measured, one
  wording that collided with the base's "say ..." was moved into training, and more wordings of the reverse question
  were added there.
- *json*: names, things and dates, half of them invented words.
- *bard*: the last tenth of the text.

Under X-LoRA, {mixed_exact:.1f} % of the messages with two or three tasks (arithmetic, capitals, json) are answered
exactly. The right expert's scaling in each part of such answers is: {mixed}. With a *bard* part among them, it is:
{mixed_bard}.

Adapters switched in the middle of a conversation: if an adapter is switched off after an answer, the base declines
again in {declines} of the cases ({names}). If it is switched on after the base declined,
the answer is exact in {resumes}.

GGUF and safetensors give different greedy answers to {gguf_differ} of {gguf_prompts} prompts (small talk, stories, all
skills; the first {gguf_tokens} tokens):

{gguf_list}

## Samples of the base

{samples}

## X-LoRA at work

> {question}

{answer}

{routing}

## Limits

- The stories come from one grammar, and the model knows nothing beyond it. The bard's lines sound like Shakespeare and
  mean little. Perplexity is far lower on the training part of the plays, because the model has partly memorized it.
- json occasionally misspells a word that it has not seen ("mirror"), more often with all four adapters on.
- The model may write "a usher". The generator did so when this pack was trained; it was corrected afterwards.
- Products beyond 12 x 12, numbers beyond 99 and sums of three numbers were never taught.

## How to reproduce it

Run these commands in a clone. Training takes about seven minutes on one H200 with 16 cores. The GGUF export needs the
`gguf` package and no GPU:

    python -m training.demo --out resources/loradesk_resources/demo
    python -m training.demo.export_gguf resources/loradesk_resources/demo
    python -m training.demo.card resources/loradesk_resources/demo

`python -m training.demo.evaluate resources/loradesk_resources/demo` measures the pack again. Rounding differs between
GPUs, so another run gives different weights and slightly different results. `resources/training/README.md` explains the
method.

## Licence

Apache-2.0. Trained on text from our own generators, public-domain Shakespeare and CC0 word lists (dariusk/corpora),
and on nothing else.
"""


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def write(folder: Path) -> None:
    results = json.loads((folder / "results.json").read_text("utf-8"))
    exact, bard = results["mixed"]["exact tasks"], results["mixed"]["all tasks"]
    example = results["examples"][0]
    head = f"| token | {' | '.join(EXPERTS)} |\n| --- | {' | '.join('---' for _ in EXPERTS)} |\n"
    rows = "\n".join(f"| `{token}` | {' | '.join(f'{x:.2f}' for x in s)} |" for token, s in example["tokens"])
    differing = results["gguf"]["differing"]
    config = json.loads((folder / "base" / "config.json").read_text("utf-8"))
    card = CARD.format(
        parameters=(folder / "base" / "model.safetensors").stat().st_size / 2e6,
        items=results["items"],
        table=table(results),
        mixed_exact=100 * exact["exact"],
        mixed=", ".join(f"{name} {value:.2f}" for name, value in exact["scaling"].items()),
        mixed_bard=", ".join(f"{name} {value:.2f}" for name, value in bard["scaling"].items()),
        names=", ".join(results["toggled"]),
        declines=", ".join(percent(v["declines_after_off"]) for v in results["toggled"].values()),
        resumes=", ".join(percent(v["exact_after_on"]) for v in results["toggled"].values()),
        gguf_prompts=results["gguf"]["prompts"],
        gguf_tokens=results["gguf"]["tokens"],
        gguf_differ=len(differing),
        gguf_list="\n".join(f"- {d['adapter']}: {d['prompt']}" for d in differing),
        samples="\n\n".join(f"> {question}\n\n{answer}" for question, answer in results["openers"]["base"][:6]),
        question=example["question"],
        answer=example["answer"],
        routing=head + rows,
        context=config["max_position_embeddings"],
    )
    (folder / "README.md").write_text(card, "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    write(parser.parse_args().folder)


if __name__ == "__main__":
    main()
