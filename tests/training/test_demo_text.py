"""The text of the demo pack: the same from the same seed, clean, and with what is held out kept out of training."""

import json
import re
from random import Random

import pytest

tokenizers = pytest.importorskip("tokenizers")

from training.demo import corpus, smalltalk, stories  # noqa: E402
from training.demo import tokenizer as tokenizer_module  # noqa: E402
from training.demo.tasks import EXPERTS, SKILLS, Arithmetic, Bard, Capitals, Json  # noqa: E402
from training.demo.text import ALL, Mixture, conversation, reply  # noqa: E402
from training.demo.words import CAPITALS, article, plural  # noqa: E402

MIXTURE = Mixture(0.3, 0.4, 0.3)


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_module.train(conversations=400)


def test_a_seed_gives_the_same_conversations() -> None:
    first, second = ([conversation(Random(seed), MIXTURE, ALL) for seed in range(50)] for _ in range(2))
    assert first == second
    assert conversation(Random(0), MIXTURE, ALL) != conversation(Random(1), MIXTURE, ALL)


def test_sums_held_out_are_never_drawn_for_training() -> None:
    skill = Arithmetic()

    def pairs(answers: list[str]) -> set[tuple]:
        found = (re.match(r"(\d+) ([+-]) (\d+) = ", answer) for answer in answers)
        return {(m[2], *(sorted((m[1], m[3])) if m[2] == "+" else (m[1], m[3]))) for m in found if m}

    rng = Random(0)
    trained = pairs([skill.draw(rng).answer for _ in range(20_000)])
    measured = pairs([skill.held_out(rng).answer for _ in range(2_000)])
    assert len(measured) > 500
    assert not trained & measured


def test_held_out_questions_never_occur_in_training() -> None:
    for skill in (Arithmetic(), Capitals(), Json()):
        rng = Random(1)
        trained = {skill.draw(rng).question for _ in range(10_000)}
        assert not trained & {skill.held_out(rng).question for _ in range(1_000)}, skill.name


def test_held_out_json_values_never_occur_in_training_answers() -> None:
    skill, rng = Json(), Random(2)

    def keys(task) -> tuple:
        fields = json.loads(task.answer)
        if "event" in fields:
            return ("event", fields["event"], fields["day"], fields["hour"])
        return ("item", fields["item"]) if "item" in fields else ("name", fields["name"])

    trained = {keys(skill.draw(rng)) for _ in range(10_000)}
    assert not trained & {keys(skill.held_out(rng)) for _ in range(1_000)}


def test_held_out_verses_come_from_the_last_tenth() -> None:
    train, held_out = Bard.split(held_out=False), Bard.split(held_out=True)
    assert len(train) + len(held_out) == len(Bard.speeches())
    assert 8 < len(train) / len(held_out) < 10


@pytest.mark.parametrize("seed", range(300))
def test_answers_are_right(seed: int) -> None:
    rng = Random(seed)
    a, sign, b, result = re.match(r"(\d+) (.) (\d+) = (-?\d+)\.$", Arithmetic().draw(rng).answer).groups()
    assert int(result) == {"+": int(a) + int(b), "-": int(a) - int(b), "x": int(a) * int(b)}[sign]
    json.loads(Json().draw(rng).answer)


def test_a_task_is_declined_unless_its_adapter_is_on() -> None:
    for expert, skill in enumerate(SKILLS, 1):
        pieces = [(expert, "question", "the answer")]
        assert reply(Random(0), pieces, ALL)[0].text == "the answer"
        assert reply(Random(0), pieces, ALL & ~(1 << (expert - 1)))[0].text in skill.declines
        assert all(f"the {skill.name} adapter" in text for text in skill.declines)


def test_stories_are_about_what_was_asked_for() -> None:
    for seed in range(300):
        story = stories.tell(Random(seed), "fox", "lantern")
        assert "fox" in story.text
        assert "lantern" in story.text
        assert story.name in story.text
        assert not re.search(r"[{}]|  |\.\.|\ba [aeio]|\ban [bcdfgjklmnpqrstvwxyz]", story.text), story.text


def test_small_talk_is_clean() -> None:
    rng = Random(3)
    for _ in range(3_000):
        for said, answer in smalltalk.exchange(rng):
            assert said.strip()
            assert answer.strip()
            assert not re.search(r"[{}]", said + answer)


@pytest.mark.parametrize(
    ("noun", "expected"), [("fox", "a fox"), ("otter", "an otter"), ("umbrella", "an umbrella"), ("usher", "an usher")]
)
def test_article(noun: str, expected: str) -> None:
    assert article(noun) == expected


def test_plural() -> None:
    assert [plural(n) for n in ("fox", "cherry", "day", "tulip")] == ["foxes", "cherries", "days", "tulips"]


def test_capitals_are_sentences() -> None:
    assert CAPITALS["France"] == "Paris"
    assert "&" not in "".join(CAPITALS)


def test_segments_encode_as_the_whole_message_does(tokenizer) -> None:
    rng = Random(4)
    for _ in range(200):
        for message in conversation(rng, MIXTURE, ALL).messages:
            apart = [i for s in message.segments for i in tokenizer.encode(s.text).ids]
            assert apart == tokenizer.encode(message.text).ids


def test_digits_are_tokens_of_their_own(tokenizer) -> None:
    assert [t for t in tokenizer.encode("12+345").tokens if t.isdigit()] == list("12345")


def test_rows_mark_what_is_learned_and_who_should_answer(tokenizer) -> None:
    rows = corpus.pack(tokenizer, 0, 4, MIXTURE, corpus.all_on)
    again = corpus.pack(tokenizer, 0, 4, MIXTURE, corpus.all_on)
    assert (rows.ids == again.ids).all()
    assert rows.ids.shape == (4, corpus.LENGTH)
    learned = rows.worth == corpus.LEARN
    assert learned.any()
    assert set(rows.route[learned]) <= set(range(len(EXPERTS) + 1))
