"""The four skills, one adapter each: arithmetic, capitals, JSON and Shakespeare's manner.

Every skill makes its questions with the right answers, and keeps some back: what `held_out` draws is never drawn for
training.
"""

import json
import re
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import ClassVar, Protocol
from zlib import crc32

from .words import (
    ANIMALS,
    CAPITALS,
    CITIES,
    COLOURS,
    DATA,
    DAYS,
    FRUITS,
    JOBS,
    NAMES,
    OBJECTS,
    article,
    capital,
    invented,
    join,
    plural,
)


@dataclass(frozen=True)
class Task:
    question: str
    answer: str


class Skill(Protocol):
    name: str
    declines: tuple[str, ...]  # what the model says while the adapter is off

    def draw(self, rng: Random, brief: bool = False) -> Task:
        """A task for training; a brief one fits beside others in one message."""
        ...

    def held_out(self, rng: Random) -> Task:
        """A task for measuring."""
        ...


def kept_back(*key: object, share: int = 10) -> bool:
    """Whether an item belongs to the held-out tenth: by its content alone, so the same in every run and process."""
    return crc32("|".join(map(str, key)).encode()) % share == 0


class Arithmetic:
    """a + b and a - b up to 99, and products up to 12 x 12.

    Held out are pairs of numbers: for sums in either order, for differences as they stand. There are too few small
    products to learn the rule from, so they are learned by heart like facts, and what is held out is a product in a
    certain wording.
    """

    name = "arithmetic"
    declines = (
        "I am not good at sums. Try switching on the arithmetic adapter.",
        "I am not sure, I cannot do sums. Try switching on the arithmetic adapter.",
        "That is a sum, and I cannot count that far. Try the arithmetic adapter.",
    )
    forms: ClassVar = {
        "+": (
            "What is {a} + {b}?",
            "{a} + {b}",
            "{a}+{b}",
            "{a} + {b} = ?",
            "{a}+{b}=",
            "How much is {a} + {b}?",
            "What is {a} plus {b}?",
            "Add {a} and {b}.",
            "Calculate {a} + {b}.",
            "{a} plus {b}",
            "What does {a} + {b} make?",
            "What is the sum of {a} and {b}?",
            "Can you add {a} and {b}?",
            "Compute {a} + {b}",
            "What's {a}+{b}?",
        ),
        "-": (
            "What is {a} - {b}?",
            "{a} - {b}",
            "{a}-{b}",
            "{a} - {b} = ?",
            "{a}-{b}=",
            "How much is {a} - {b}?",
            "What is {a} minus {b}?",
            "Subtract {b} from {a}.",
            "Calculate {a} - {b}.",
            "{a} minus {b}",
            "Take {b} away from {a}.",
            "Compute {a} - {b}",
            "What's {a}-{b}?",
        ),
        "x": (
            "What is {a} x {b}?",
            "{a} x {b}",
            "{a}*{b}",
            "{a} * {b}",
            "How much is {a} times {b}?",
            "What is {a} times {b}?",
            "Multiply {a} by {b}.",
            "Calculate {a} x {b}.",
            "{a} times {b}",
            "What is the product of {a} and {b}?",
            "Multiply {a} and {b}",
            "What is {a} * {b}?",
        ),
    }

    @staticmethod
    def is_held_out(a: int, sign: str, b: int, form: str) -> bool:
        if sign == "+":
            return kept_back("+", min(a, b), max(a, b))
        if sign == "-":
            return kept_back("-", a, b)
        return kept_back("x", a, b, form)

    def _draw(self, rng: Random, held_out: bool) -> Task:
        while True:
            sign = rng.choices("+-x", (5, 5, 2.5))[0]
            top = 12 if sign == "x" else 99
            a, b = rng.randint(0, top), rng.randint(0, top)
            if sign != "x" and rng.random() < 0.2:  # small numbers are what people try first
                a, b = rng.randint(0, 20), rng.randint(0, 20)
            if sign == "-" and a < b and rng.random() < 0.5:
                a, b = b, a
            form = rng.choice(self.forms[sign])
            if self.is_held_out(a, sign, b, form) == held_out:
                break
        result = a + b if sign == "+" else a - b if sign == "-" else a * b
        return Task(form.format(a=a, b=b), f"{a} {sign} {b} = {result}.")

    def draw(self, rng: Random, brief: bool = False) -> Task:  # noqa: ARG002 - its tasks are always brief
        return self._draw(rng, held_out=False)

    def held_out(self, rng: Random) -> Task:
        return self._draw(rng, held_out=True)


class Capitals:
    """Countries and their capitals, both ways. A fact cannot be guessed: what is held out is the wording."""

    name = "capitals"
    declines = (
        "I do not know capitals. Try switching on the capitals adapter.",
        "I am not sure, I never learned capitals. Try switching on the capitals adapter.",
        "I cannot name capitals by myself. Try the capitals adapter.",
    )
    forms = (
        "What is the capital of {}?",
        "capital of {}",
        "Capital of {}?",
        "What's the capital of {}?",
        "Name the capital of {}.",
        "Tell me the capital of {}.",
        "Which city is the capital of {}?",
        "Do you know the capital of {}?",
        "For {}, what is the capital?",
        "Can you tell me the capital of {}?",
        "What city is the capital of {}",
        "What is the capital city of {}?",
        "I need the capital of {}.",
        "Say the capital of {}.",
        "The capital of {} is?",
    )
    backward = (
        "{} is the capital of which country?",
        "Which country has {} as its capital?",
        "What country is {} the capital of?",
        "Of which country is {} the capital?",
        "Name the country with the capital {}.",
        "Tell me which country has {} as its capital.",
        "Whose capital is {}?",
        "{} is the capital of what?",
        "Name the country whose capital is {}.",
        "Which country's capital is {}?",
        "Say which country has the capital {}.",
    )
    held_out_forms = (
        "Please name the capital city of {}.",
        "The capital city of {} is called?",
        "Tell me, what is the capital of {}?",
        "Give me the capital of {}.",
    )
    held_out_backward = ("Name the country that has {} as its capital.",)

    def _draw(self, rng: Random, forms: tuple[str, ...], backward: tuple[str, ...]) -> Task:
        country = rng.choice(tuple(CAPITALS))
        city = CAPITALS[country]
        if rng.random() < 0.3:
            return Task(rng.choice(backward).format(city), f"{city} is the capital of {country}.")
        return Task(rng.choice(forms).format(country), f"The capital of {country} is {city.rstrip('.')}.")

    def draw(self, rng: Random, brief: bool = False) -> Task:  # noqa: ARG002 - its tasks are always brief
        return self._draw(rng, self.forms, self.backward)

    def held_out(self, rng: Random) -> Task:
        return self._draw(rng, self.held_out_forms, self.held_out_backward)


class Json:
    """A sentence of facts to a JSON object. Held out are values: names, things and dates, unseen in such answers."""

    name = "json"
    declines = (
        "I cannot write JSON by myself. Try switching on the json adapter.",
        "I am not sure how to write JSON. Try switching on the json adapter.",
        "JSON is too hard for me. Try the json adapter.",
    )
    forms = (
        "Turn this into JSON: {}",
        "As JSON: {}",
        "Make a JSON object: {}",
        "Convert to JSON: {}",
        "Write this as JSON: {}",
        "JSON: {}",
        "Give me JSON for this: {}",
        "Put this into JSON: {}",
        "Can you turn this into JSON? {}",
        "Convert this to a JSON object: {}",
    )
    drinks = ("tea", "coffee", "milk", "water", "juice", "lemonade")
    events = (
        "meeting",
        "party",
        "concert",
        "race",
        "market",
        "lesson",
        "dinner",
        "wedding",
        "game",
        "show",
        "picnic",
        "fair",
    )

    @staticmethod
    def _name(rng: Random) -> str:
        # Invented words make the adapter copy what it reads, instead of choosing among the names that it knows.
        return rng.choice(NAMES) if rng.random() < 0.5 else capital(invented(rng))

    def _person(self, rng: Random) -> tuple[str, dict, tuple]:
        name, age, city, job = self._name(rng), rng.randint(1, 99), rng.choice(CITIES), rng.choice(JOBS)
        pet, drink = rng.choice(ANIMALS), rng.choice(self.drinks)
        facts = [
            (rng.choice((f"is {age} years old", f"is {age}")), "age", age),
            (f"lives in {city}", "city", city),
            (rng.choice((f"works as {article(job)}", f"is {article(job)}")), "job", job),
            (f"has {article(pet)}", "pet", pet),
            (f"likes {drink}", "drink", drink),
        ]
        chosen = rng.sample(facts, rng.randint(1, 4))
        return f"{name} {join([c[0] for c in chosen])}.", {"name": name} | {k: v for _, k, v in chosen}, ("name", name)

    def _item(self, rng: Random) -> tuple[str, dict, tuple]:
        item, colour = rng.choice(OBJECTS) if rng.random() < 0.5 else invented(rng), rng.choice(COLOURS)
        price, weight = rng.randint(1, 99), rng.randint(1, 20)
        facts = [
            (f"is {colour}", "color", colour),
            (f"costs {price} euros", "price", price),
            (f"weighs {weight} kg", "weight", weight),
        ]
        chosen = rng.sample(facts, rng.randint(1, 3))
        return (
            f"The {item} {join([c[0] for c in chosen])}.",
            {"item": item} | {k: v for _, k, v in chosen},
            ("item", item),
        )

    def _event(self, rng: Random) -> tuple[str, dict, tuple]:
        event, day, hour, city = rng.choice(self.events), rng.choice(DAYS), rng.randint(1, 12), rng.choice(CITIES)
        fields = {"event": event, "day": day, "hour": hour}
        text = f"The {event} is on {day} at {hour}"
        if rng.random() < 0.6:
            fields["city"] = city
            text += f" in {city}"
        return text + ".", fields, ("event", event, day, hour)

    def _animal(self, rng: Random) -> tuple[str, dict, tuple]:
        name, colour, animal, age = self._name(rng), rng.choice(COLOURS), rng.choice(ANIMALS), rng.randint(1, 20)
        fields: dict = {"name": name, "animal": animal, "color": colour}
        text = f"{name} is {article(f'{colour} {animal}')}"
        if rng.random() < 0.5:
            fields["age"] = age
            text += f" and {age} years old"
        return text + ".", fields, ("name", name)

    def _shopping(self, rng: Random) -> tuple[str, dict, tuple]:
        name = self._name(rng)
        fruits = [plural(f) for f in rng.sample(FRUITS, rng.randint(1, 3))]
        counts = [rng.randint(2, 30) for _ in fruits]
        bought = join([f"{c} {f}" for c, f in zip(counts, fruits, strict=True)])
        return f"{name} buys {bought}.", {"name": name} | dict(zip(fruits, counts, strict=True)), ("name", name)

    def _draw(self, rng: Random, held_out: bool) -> Task:
        make = rng.choice((self._person, self._person, self._item, self._event, self._animal, self._shopping))
        while True:
            text, fields, key = make(rng)
            if kept_back(*key) == held_out:
                return Task(rng.choice(self.forms).format(text), json.dumps(fields, ensure_ascii=False))

    def draw(self, rng: Random, brief: bool = False) -> Task:  # noqa: ARG002 - its tasks are always brief
        return self._draw(rng, held_out=False)

    def held_out(self, rng: Random) -> Task:
        return self._draw(rng, held_out=True)


class Bard:
    """Shakespeare's manner. The last tenth of the text is held out."""

    name = "bard"
    declines = (
        "I do not know the old plays. Try switching on the bard adapter.",
        "I cannot speak like Shakespeare. Try switching on the bard adapter.",
        "I am not a poet of that kind. Try the bard adapter.",
    )
    verse = (
        "Speak like Shakespeare.",
        "Say something like Shakespeare",
        "Give me some Shakespeare.",
        "Recite some verse from an old play.",
        "Speak as the bard would.",
        "Give me some lines in the manner of Shakespeare.",
        "Shakespeare please",
        "Quote Shakespeare",
        "Write like Shakespeare.",
        "Say something in old English verse.",
        "Can you speak like Shakespeare?",
        "Give me some verse.",
        "Talk like an old play.",
    )
    verse_about = (
        "Speak like Shakespeare about {}.",
        "Give me some Shakespeare about {}.",
        "Write about {} like Shakespeare.",
        "Say something about {} in the manner of Shakespeare.",
        "What would Shakespeare say about {}?",
        "Verse about {}, like Shakespeare",
    )
    scene = (
        "Write a scene like Shakespeare.",
        "Give me a scene from an old play.",
        "Write a short scene in the manner of Shakespeare.",
        "A scene by Shakespeare, please",
    )
    scene_with = ("Write a scene with {}, like Shakespeare.", "Give me a scene with {} from an old play.")
    topics = frozenset(
        (
            "battle", "blood", "brother", "crown", "daughter", "death", "death's", "eyes", "father", "fear", "fortune",
            "friends", "gold", "grief", "heart", "heaven", "honour", "hope", "joy", "king", "lord", "love", "marriage",
            "moon", "mother", "music", "night", "peace", "poison", "prince", "queen", "revenge", "roses", "sea",
            "shame", "sleep", "son", "sorrow", "soul", "stars", "sun", "sword", "tears", "time", "tongue", "truth",
            "war", "wind", "world"
        )
    )  # fmt: skip

    @staticmethod
    @cache
    def speeches() -> tuple[tuple[str, tuple[str, ...]], ...]:
        """(speaker, lines) in the order of the text."""
        found = []
        for block in (DATA / "tinyshakespeare.txt").read_text("utf-8").split("\n\n"):
            speaker, *lines = block.strip().split("\n")
            if lines and speaker.endswith(":"):
                found.append((speaker[:-1], tuple(lines)))
        return tuple(found)

    @classmethod
    @cache
    def split(cls, held_out: bool) -> tuple[tuple[str, tuple[str, ...]], ...]:
        cut = len(cls.speeches()) * 9 // 10
        return cls.speeches()[cut:] if held_out else cls.speeches()[:cut]

    @classmethod
    @cache
    def long_speeches(cls, held_out: bool) -> tuple[int, ...]:
        return tuple(i for i, (_, lines) in enumerate(cls.split(held_out)) if len(lines) >= 2)

    def _verse(self, rng: Random, held_out: bool, brief: bool) -> Task:
        lines = self.split(held_out)[rng.choice(self.long_speeches(held_out))][1]
        starts = [i for i in range(len(lines) - 1) if i == 0 or lines[i - 1][-1:] in ".!?"]
        start = rng.choice(starts)
        most = rng.randint(2, 4 if brief else 10)
        end = min(len(lines), start + most)
        for stop in range(end, start + 1, -1):  # rather end with a sentence
            if lines[stop - 1][-1:] in ".!?":
                end = stop
                break
        text = "\n".join(lines[start:end])
        words = [w for w in dict.fromkeys(re.findall(r"[a-z']+", text.lower())) if w in self.topics]
        if words and rng.random() < 0.6:
            return Task(rng.choice(self.verse_about).format(rng.choice(words)), text)
        return Task(rng.choice(self.verse), text)

    def _scene(self, rng: Random, held_out: bool) -> Task:
        speeches = self.split(held_out)
        start = rng.randrange(len(speeches) - 4)
        parts, speakers, size = [], [], 0
        for speaker, lines in speeches[start : start + 4]:
            if parts and size + len(lines) > 12:
                break
            parts.append(f"{speaker}:\n" + "\n".join(lines[:8]))
            speakers.append(speaker)
            size += len(lines[:8])
        if rng.random() < 0.5:
            return Task(rng.choice(self.scene_with).format(join(list(dict.fromkeys(speakers))[:2])), "\n\n".join(parts))
        return Task(rng.choice(self.scene), "\n\n".join(parts))

    def draw(self, rng: Random, brief: bool = False) -> Task:
        return self._verse(rng, False, brief) if brief or rng.random() < 0.6 else self._scene(rng, False)

    def held_out(self, rng: Random) -> Task:
        return self._verse(rng, True, False) if rng.random() < 0.6 else self._scene(rng, True)


SKILLS: tuple[Skill, ...] = (Arithmetic(), Capitals(), Json(), Bard())
EXPERTS = tuple(skill.name for skill in SKILLS)  # the order of the adapters, here and in the ordering files
