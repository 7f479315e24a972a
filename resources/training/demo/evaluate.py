"""Measures a pack from its files: held-out items, greedy answers. `python -m training.demo.evaluate FOLDER`"""

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from . import corpus, pack
from .corpus import LEARN
from .model import Classifier, Decoder
from .tasks import EXPERTS, SKILLS
from .text import ALL, END, Conversation, Message, Segment, inner, mixed, reply

OPENERS = (
    "hello",
    "who are you?",
    "tell me a story about a fox",
    "what can you do?",
    "thanks",
    "bye",
    "how are you?",
    "tell me a joke",
    "what is a LoRA adapter?",
    "My name is Anna",
)
SEED = 7


@dataclass
class Pack:
    """A pack in memory, and ways to run it."""

    model: Decoder
    classifier: Classifier | None
    tokenizer: Tokenizer

    @classmethod
    def read(cls, folder: Path, device: torch.device) -> "Pack":
        return cls(pack.read_model(folder, device), pack.read_classifier(folder, device), pack.read_tokenizer(folder))

    @property
    def device(self) -> torch.device:
        return self.model.embed_tokens.weight.device

    @torch.no_grad()
    def scalings(self, ids: Tensor, mode: str) -> Tensor | None:
        """`mode`: "base", "xlora", or names of adapters joined with "+"."""
        if mode == "base":
            return None
        if mode == "xlora":
            assert self.classifier is not None
            return self.classifier(self.model.hidden_states(ids))
        on = torch.tensor([float(name in mode.split("+")) for name in EXPERTS], device=ids.device)
        return on.expand(*ids.shape, 1, len(EXPERTS))

    @torch.no_grad()
    def answer(self, prompts: list[str], mode: str, most: int = 96, group: int = 400) -> list[str]:
        """Greedy answers. Without a cache: every step runs the whole text again, which is slow but cannot be wrong."""
        out: list[str] = []
        for first in range(0, len(prompts), group):
            out += self._answer(prompts[first : first + group], mode, most)
        return out

    def _answer(self, prompts: list[str], mode: str, most: int) -> list[str]:
        texts = [self.tokenizer.encode(p, add_special_tokens=False).ids for p in prompts]
        end = self.tokenizer.token_to_id(END)
        answers: list[list[int]] = [[] for _ in texts]
        running = list(range(len(texts)))
        for _ in range(most):
            rows = [texts[i] + answers[i] for i in running]
            width = max(map(len, rows))
            ids = torch.tensor(
                [r + [end] * (width - len(r)) for r in rows], device=self.device
            )  # what follows the last token is not seen
            last = torch.tensor([len(r) - 1 for r in rows], device=self.device)
            hidden = self.model.hidden_states(ids, self.scalings(ids, mode))[
                torch.arange(len(rows), device=self.device), last
            ]
            chosen = F.linear(hidden, self.model.embed_tokens.weight).argmax(-1).tolist()
            for i, token in zip(running, chosen, strict=True):
                if token != end:
                    answers[i].append(token)
            running = [i for i, token in zip(running, chosen, strict=True) if token != end]
            if not running:
                break
        return [self.tokenizer.decode(a) for a in answers]

    @torch.no_grad()
    def read_text(self, conversations: list[Conversation], mode: str) -> tuple[float, dict[int, float]]:
        """(perplexity of the answers, mean scaling of the right expert over each expert's part of the answers)."""
        loss = count = 0.0
        sums: dict[int, list[float]] = {}
        for first in range(0, len(conversations), 50):
            docs = corpus.encode(self.tokenizer, conversations[first : first + 50])
            width = max(d.shape[1] for d in docs)
            ids = torch.zeros(len(docs), width, dtype=torch.long)
            route = torch.full((len(docs), width), corpus.NOWHERE)
            worth = torch.zeros(len(docs), width, dtype=torch.long)
            for i, doc in enumerate(docs):
                ids[i, : doc.shape[1]], route[i, : doc.shape[1]], worth[i, : doc.shape[1]] = torch.from_numpy(
                    doc[:3].astype("int64")
                )
            ids, route, worth = ids.to(self.device), route.to(self.device), worth.to(self.device)
            scalings = self.scalings(ids, mode)
            logits = self.model(ids, scalings)[:, :-1]
            each = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
            says = (worth[:, :-1] == LEARN).flatten()
            loss += each[says].sum().item()
            count += says.sum().item()
            if mode == "xlora":
                mean = scalings.mean(dim=2)
                for expert in range(1, len(EXPERTS) + 1):
                    at = (route == expert) & (worth == LEARN)
                    if at.any():
                        sums.setdefault(expert, []).extend(mean[at][:, expert - 1].tolist())
        return math.exp(loss / max(count, 1)), {e: sum(v) / len(v) for e, v in sums.items()}


def as_conversation(pieces: list[tuple[int, str, str]], question: str, active: int = ALL) -> Conversation:
    answers = reply(Random(0), pieces, active)
    return Conversation(
        (Message("user", (Segment(question, pieces[0][0]),)), Message("assistant", answers, True)), active
    )


def ask_for(question: str) -> str:
    return corpus.prompt([Message("user", (Segment(question, 0),))])


def joined_question(questions: list[str]) -> str:
    """Two questions in one message, in a way that training uses among others."""
    first = questions[0] if questions[0][-1] in ".?!" else questions[0] + "?"
    return " ".join([first, *(f"And {inner(q)}" for q in questions[1:])])


def measure(p: Pack, items: int = 300) -> dict:
    results: dict = {"items": items, "skills": {}, "mixed": {}}
    for expert, skill in enumerate(SKILLS, 1):
        rng = Random(SEED + expert)
        tasks = [skill.held_out(rng) for _ in range(items)]
        conversations = [as_conversation([(expert, t.question, t.answer)], t.question) for t in tasks]
        row: dict = {}
        modes = {"base": "base", "adapter": skill.name, "all": "+".join(EXPERTS), "xlora": "xlora"}
        for label, mode in modes.items():
            perplexity, scaling = p.read_text(conversations, mode)
            row[f"perplexity_{label}"] = perplexity
            if label == "xlora":
                row["scaling"] = scaling[expert]
        if skill.name != "bard":
            for label, mode in modes.items():
                given = p.answer([ask_for(t.question) for t in tasks], mode)
                right = [a == t.answer for a, t in zip(given, tasks, strict=True)]
                row[f"exact_{label}"] = sum(right) / items
                row[f"wrong_{label}"] = [[t.question, a] for a, t, r in zip(given, tasks, right, strict=True) if not r][
                    :8
                ]
        results["skills"][skill.name] = row

    rng = Random(SEED)
    for shares, label in (((1, 1, 1, 0), "exact tasks"), ((1, 1, 1, 1), "all tasks")):
        cases = []
        while len(cases) < items // 2:
            pieces = mixed(rng, shares, lambda skill, r: skill.held_out(r))
            if all(e for e, _, _ in pieces) and (
                label == "exact tasks" or any(e == EXPERTS.index("bard") + 1 for e, _, _ in pieces)
            ):
                cases.append(pieces)
        conversations = [as_conversation(c, joined_question([q for _, q, _ in c])) for c in cases]
        _, scaling = p.read_text(conversations, "xlora")
        row = {"scaling": {EXPERTS[e - 1]: v for e, v in scaling.items()}}
        if label == "exact tasks":
            given = p.answer([ask_for(c.messages[0].text) for c in conversations], "xlora")
            wanted = [c.messages[1].text for c in conversations]
            row["exact"] = sum(a == w for a, w in zip(given, wanted, strict=True)) / len(cases)
            row["wrong"] = [
                [c.messages[0].text, a] for a, w, c in zip(given, wanted, conversations, strict=True) if a != w
            ][:8]
        results["mixed"][label] = row

    results["openers"] = {
        mode: list(zip(OPENERS, p.answer([ask_for(o) for o in OPENERS], mode, 160), strict=True))
        for mode in ("base", "xlora", *EXPERTS)
    }
    results["toggled"] = toggled(p, 100)
    results["examples"] = examples(p)
    return results


def toggled(p: Pack, items: int) -> dict:
    """Shares of second answers that are right after a switch was moved in the middle of a conversation."""
    shares = {}
    for expert, skill in enumerate(SKILLS[:3], 1):
        rng = Random(SEED + 100 + expert)
        off, on = [], []
        tasks = [(skill.draw(rng), skill.held_out(rng)) for _ in range(items)]
        for before, after in tasks:
            for declined, prompts in ((False, off), (True, on)):
                said = skill.declines[0] if declined else before.answer
                turns = [("user", before.question), ("assistant", said), ("user", after.question)]
                prompts.append(corpus.prompt([Message(role, (Segment(text, expert),)) for role, text in turns]))
        shares[skill.name] = {
            "declines_after_off": sum(a in skill.declines for a in p.answer(off, "base")) / items,
            "exact_after_on": sum(a == t.answer for a, (_, t) in zip(p.answer(on, skill.name), tasks, strict=True))
            / items,
        }
    return shares


def examples(p: Pack) -> list[dict]:
    """Messages with several tasks, with the scalings of every token of the answer."""
    out = []
    for question in (
        "What is 12 + 30, and what is the capital of France?",
        "Hello! What is 7 x 8?",
        "Turn this into JSON: Anna is 31 and lives in Oslo. And what is the capital of Japan?",
        "Speak like Shakespeare about love. And what is 50 - 8?",
    ):
        prompt = ask_for(question)
        answer = p.answer([prompt], "xlora", 120)[0]
        ids = p.tokenizer.encode(prompt + answer, add_special_tokens=False).ids
        start = len(p.tokenizer.encode(prompt, add_special_tokens=False).ids)
        mean = p.scalings(torch.tensor([ids], device=p.device), "xlora")[0].mean(dim=1)
        tokens = [
            [p.tokenizer.decode([ids[i]]), [round(x, 2) for x in mean[i - 1].tolist()]] for i in range(start, len(ids))
        ]
        out.append({"question": question, "base": p.answer([prompt], "base")[0], "answer": answer, "tokens": tokens})
    return out


def table(results: dict) -> str:
    """The results, as a table for people."""
    lines = [
        "| skill | base | adapter alone | all four on | X-LoRA | right expert's scaling |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in results["skills"].items():
        if "exact_base" in row:
            cells = [f"{100 * row[f'exact_{m}']:.1f} %" for m in ("base", "adapter", "all", "xlora")]
            lines.append(f"| {name}, exact | {' | '.join(cells)} | {row['scaling']:.2f} |")
        else:
            cells = [f"{row[f'perplexity_{m}']:.1f}" for m in ("base", "adapter", "all", "xlora")]
            lines.append(f"| {name}, perplexity | {' | '.join(cells)} | {row['scaling']:.2f} |")
    return "\n".join(lines)


def write(folder: Path, results: dict) -> None:
    (folder / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--items", type=int, default=300)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    results = measure(Pack.read(arguments.folder, device), arguments.items)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1, ensure_ascii=False), "utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
