"""Conversations, as training text: small talk and tasks in turns, each piece marked with the expert it belongs to.

What the model should answer depends on the adapters that are active: a task whose adapter is on gets its answer, any
other a friendly hint. Conversations mix both, with adapters toggled between the turns, so that a switch moved in the
middle of a conversation works.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from . import smalltalk
from .tasks import EXPERTS, SKILLS, Task

CHAT = 0  # the expert number of small talk: none; the experts are 1, 2, ...
ALL = (1 << len(EXPERTS)) - 1  # a set of active adapters is a bit mask

BOS, END, PAD, USER, ASSISTANT, SYSTEM = SPECIAL = (
    "<|bos|>",
    "<|end|>",
    "<|pad|>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' }}{{ message['content'] | trim }}{{ '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SYSTEM_TEXTS = (
    "You are a helpful assistant.",
    "You are a friendly assistant.",
    "You are the demo model of Loradesk.",
    "Answer in short sentences.",
)


@dataclass(frozen=True)
class Segment:
    """A piece of a message that belongs to one expert."""

    text: str
    expert: int


@dataclass(frozen=True)
class Message:
    role: str
    segments: tuple[Segment, ...]
    learn: bool = False  # whether the model is trained to say this under the conversation's active adapters

    @property
    def text(self) -> str:
        return "".join(segment.text for segment in self.segments)


@dataclass(frozen=True)
class Conversation:
    messages: tuple[Message, ...]
    active: int  # bit mask of the adapters that are on


@dataclass(frozen=True)
class Mixture:
    """The kinds of turns in a corpus."""

    chat: float
    single: float
    mixed: float
    skills: tuple[float, ...] = (4, 2, 2, 2)  # shares of the skills among the tasks


def casual(rng: Random, text: str) -> str:
    """The text as people type it: often without capital letters or a full stop."""
    chance = rng.random()
    if chance < 0.3:
        return text.lower().rstrip(".?!")
    if chance < 0.4:
        return text.rstrip(".?!")
    if chance < 0.45:
        return "please " + text[0].lower() + text[1:]
    if chance < 0.48:
        return "Hey, " + text[0].lower() + text[1:]
    return text


def typo(rng: Random, text: str) -> str:
    """The text with one letter dropped or two swapped."""
    if len(text) < 6:
        return text
    at = rng.randrange(1, len(text) - 1)
    return text[:at] + text[at + 1 :] if rng.random() < 0.5 else text[:at] + text[at + 1] + text[at] + text[at + 2 :]


def decline(rng: Random, expert: int) -> str:
    return rng.choice(SKILLS[expert - 1].declines)


def reply(rng: Random, pieces: Sequence[tuple[int, str, str]], active: int) -> tuple[Segment, ...]:
    """The answer to the pieces (expert, question, answer) of one message."""
    segments = []
    after_block = False
    for i, (expert, _, answer) in enumerate(pieces):
        on = expert == CHAT or active >> (expert - 1) & 1
        text = answer if on else decline(rng, expert)
        block = on and expert in BLOCKS
        joint = "" if i == 0 else "\n" if block or after_block else " "
        segments.append(Segment(joint + text, expert))
        after_block = block
    return tuple(segments)


BLOCKS = tuple(EXPERTS.index(name) + 1 for name in ("json", "bard"))  # their answers stand on lines of their own


def inner(sentence: str) -> str:
    """The sentence as it stands after "And"."""
    return sentence if re.match(r"[A-Z]{2}|I\b", sentence) else sentence[0].lower() + sentence[1:]


def ask(rng: Random, pieces: Sequence[tuple[int, str, str]]) -> tuple[Segment, ...]:
    """One message that asks for all the pieces."""
    if len(pieces) == 1:
        expert, question, _ = pieces[0]
        return (Segment(question if expert == EXPERTS.index("json") + 1 else casual(rng, question), expert),)
    segments = []
    for i, (expert, plain, _) in enumerate(pieces):
        question = plain
        last = i == len(pieces) - 1
        if not last and question[-1] not in ".?!":
            question += "?" if expert != CHAT else "."
        if i and pieces[i - 1][0] != CHAT:
            small = inner(question)
            joint = rng.choice((" And ", " Also, ", " Then ", " ", ", and "))
            if joint == ", and ":
                before = segments[-1]
                segments[-1] = Segment(before.text.rstrip(".?"), before.expert)
            question = joint + (question if joint == " " else small)
        elif i:
            question = " " + question
        segments.append(Segment(question, expert))
    if rng.random() < 0.15:
        segments[-1] = Segment(segments[-1].text.rstrip(".?!"), segments[-1].expert)
    return tuple(segments)


def mixed(
    rng: Random, shares: Sequence[float], draw=lambda skill, rng: skill.draw(rng, brief=True)
) -> list[tuple[int, str, str]]:
    """Two or three tasks of different skills for one message; sometimes a greeting goes before."""
    count = 2 if rng.random() < 0.8 else 3
    chosen: list[int] = []
    while len(chosen) < count:
        expert = rng.choices(range(1, len(SKILLS) + 1), shares)[0]
        if expert not in chosen:
            chosen.append(expert)
    pieces = []
    for expert in chosen:
        task: Task = draw(SKILLS[expert - 1], rng)
        pieces.append((expert, task.question, task.answer))
    if rng.random() < 0.12:
        greeting = rng.choice(("Hello!", "Hi!", "Hey!", "Good morning!"))
        if rng.random() < 0.5:
            pieces = pieces[:1]
        pieces.insert(0, (CHAT, greeting, "Hello!" if greeting != "Good morning!" else greeting))
    return pieces


def _turns(rng: Random, mixture: Mixture, active: int, learn: bool) -> list[Message]:
    kind = rng.choices(("chat", "single", "mixed"), (mixture.chat, mixture.single, mixture.mixed))[0]
    if kind == "chat":
        messages = []
        for words, answer in smalltalk.exchange(rng):
            said = casual(rng, words) if not words.startswith(("Say", "Repeat", "Please say")) else words
            if rng.random() < 0.02:
                said = typo(rng, said)
            messages.append(Message("user", (Segment(said, CHAT),)))
            messages.append(Message("assistant", (Segment(answer, CHAT),), learn))
        return messages
    if kind == "single":
        expert = rng.choices(range(1, len(SKILLS) + 1), mixture.skills)[0]
        task = SKILLS[expert - 1].draw(rng)
        pieces = [(expert, task.question, task.answer)]
    else:
        pieces = mixed(rng, mixture.skills)
    return [Message("user", ask(rng, pieces)), Message("assistant", reply(rng, pieces, active), learn)]


def conversation(rng: Random, mixture: Mixture, active: int) -> Conversation:
    """One to a dozen turns under the given adapters; in a third of them other adapters were on for a while before."""
    messages: list[Message] = []
    if rng.random() < 0.08:
        messages.append(Message("system", (Segment(rng.choice(SYSTEM_TEXTS), CHAT),)))
    turns = rng.choice((1, 1, 1, 2, 2, 3, 4, 5, 7, 9, 12))
    toggled = rng.random() < 0.35
    earlier = rng.randint(0, ALL)
    change = rng.randrange(turns) if toggled else 0  # turns before this one were answered with other adapters on
    for turn in range(turns):
        before = toggled and turn < change
        messages += _turns(rng, mixture, earlier if before else active, learn=not before)
    return Conversation(tuple(messages), active)
