"""Short stories out of a grammar: a hero, something wanted, a turn, an ending.

A story is one of ten plots; every sentence of a plot has several wordings and every wording has slots. The hero and a
thing may come from the request, so that the model learns to tell the story that was asked for.
"""

from dataclasses import dataclass
from random import Random

from .words import ANIMALS, COLOURS, FLOWERS, FRUITS, JOBS, MEN, THINGS, WOMEN, article, capital, plural

TRAITS = (
    "kind",
    "clever",
    "shy",
    "brave",
    "curious",
    "lazy",
    "proud",
    "patient",
    "cheerful",
    "quiet",
    "lonely",
    "hungry",
    "careful",
    "funny",
    "gentle",
    "grumpy",
    "tired",
    "young",
    "old",
    "little",
    "busy",
    "polite",
    "clumsy",
    "wise",
)
PLACES = (
    "in a green forest",
    "by a wide river",
    "on a small island",
    "near the sea",
    "in a quiet village",
    "on a high hill",
    "in an old garden",
    "beside a blue lake",
    "in a busy town",
    "at the edge of a wood",
    "in a sunny valley",
    "under a tall tree",
    "on a little farm",
    "in a stone house",
    "near an old bridge",
    "at the foot of a mountain",
)
TIMES = (
    "One morning",
    "One evening",
    "One day",
    "On a cold winter day",
    "On a warm summer day",
    "One rainy afternoon",
    "Early one spring morning",
    "Late one night",
    "One windy day",
    "On a bright autumn morning",
)
SPOTS = (
    "under a bush",
    "behind a big stone",
    "in a hollow tree",
    "at the bottom of a well",
    "on the roof",
    "inside an old boot",
    "under the bridge",
    "in the long grass",
    "next to the path",
    "in a basket",
    "behind the door",
    "under a pile of leaves",
)
GOALS = (
    "the sea",
    "the top of the mountain",
    "the end of the rainbow",
    "the big city",
    "the old castle",
    "the secret lake",
    "the lighthouse",
    "the far side of the forest",
    "the island in the mist",
    "the summer fair",
)
HURDLES = (
    "a deep river",
    "a dark cave",
    "a steep hill",
    "a thick fog",
    "a broken bridge",
    "a muddy field",
    "a high wall",
    "a field of thorns",
)
FEARS = (
    "the dark",
    "deep water",
    "thunder",
    "high places",
    "the big dog next door",
    "the old mill",
    "the wind",
    "strange noises",
    "snow",
)
FEELINGS = ("happy", "proud", "glad", "full of joy", "very pleased", "at peace")
SOUNDS = ("a strange sound", "a soft knock", "a small cry", "a scratching noise", "a funny whistle", "a quiet song")
CONTESTS = (
    "a race",
    "a singing contest",
    "a cooking contest",
    "a swimming race",
    "a contest of riddles",
    "a dancing contest",
)
MEALS = ("soup", "a pie", "a cake", "fresh bread", "a pot of jam", "pancakes", "a big salad", "a stew")
BUILDS = (
    "a boat",
    "a kite",
    "a tree house",
    "a swing",
    "a bridge",
    "a little cart",
    "a warm nest",
    "a snowman",
    "a raft",
    "a bird house",
)
MORALS = (
    "A small kindness goes a long way.",
    "It is good to have a friend.",
    "Good things take time.",
    "It helps to ask for help.",
    "You never know until you try.",
    "Sharing makes everything better.",
    "Even small steps lead far.",
    "Home is the best place of all.",
    "Courage grows when you use it.",
    "A kind word costs nothing.",
)
TROUBLES = (
    "stuck in the mud",
    "lost in the fog",
    "caught in a net",
    "up in a tree and afraid to climb down",
    "sitting alone in the rain",
    "trapped under a branch",
    "too tired to walk",
    "cold and wet",
)


@dataclass(frozen=True)
class Story:
    text: str
    hero: str
    name: str
    thing: str | None


class _Teller:
    """Holds the slots of one story."""

    def __init__(self, rng: Random, hero: str | None, thing: str | None):
        self.rng = rng
        self.hero = hero or rng.choice(ANIMALS if rng.random() < 0.7 else JOBS)
        self.female = rng.random() < 0.5
        # Heroes and friends have names of their own: a small model keeps them apart more easily.
        self.name = rng.choice(WOMEN[:-12] if self.female else MEN[:-12])
        self.thing = thing or rng.choice(THINGS)
        self.used_thing = False
        other = rng.choice(ANIMALS)
        while other == self.hero:
            other = rng.choice(ANIMALS)
        self.slots = {
            "hero": self.hero,
            "a_hero": article(self.hero),
            "name": self.name,
            "he": "she" if self.female else "he",
            "him": "her" if self.female else "him",
            "his": "her" if self.female else "his",
            "He": "She" if self.female else "He",
            "thing": self.thing,
            "a_thing": article(self.thing),
            "colour": rng.choice(COLOURS),
            "other": other,
            "an_other": article(other),
            "friend": rng.choice(WOMEN[-12:] + MEN[-12:]),
            "trait": rng.choice(TRAITS),
            "place": rng.choice(PLACES),
            "time": rng.choice(TIMES),
            "spot": rng.choice(SPOTS),
            "goal": rng.choice(GOALS),
            "hurdle": rng.choice(HURDLES),
            "fear": rng.choice(FEARS),
            "feeling": rng.choice(FEELINGS),
            "sound": rng.choice(SOUNDS),
            "contest": rng.choice(CONTESTS),
            "meal": rng.choice(MEALS),
            "build": rng.choice(BUILDS),
            "trouble": rng.choice(TROUBLES),
            "fruit": rng.choice(FRUITS),
            "flower": rng.choice(FLOWERS),
        }
        self.slots["fruits"] = plural(self.slots["fruit"])
        self.slots["a_colour_thing"] = article(f"{self.slots['colour']} {self.thing}")
        self.slots["a_trait_hero"] = article(f"{self.slots['trait']} {self.hero}")
        self.slots["a_trait_other"] = article(f"{rng.choice(TRAITS)} {other}")

    def say(self, *wordings: str) -> str:
        sentence = self.rng.choice(wordings)
        self.used_thing |= "thing}" in sentence
        return capital(sentence.format(**self.slots))

    def opening(self) -> str:
        return self.say(
            "Once upon a time there was {a_trait_hero} named {name}.",
            "There once was {a_hero} named {name} who lived {place}.",
            "{name} was {a_trait_hero} who lived {place}.",
            "Long ago, {a_trait_hero} named {name} lived {place}.",
            "{a_trait_hero} named {name} had a home {place}.",
        )

    def closing(self) -> str:
        end = self.say(
            "From that day on, {name} was never lonely again.",
            "{name} went home and slept well that night.",
            "{name} slept well that night, {feeling}.",
            "And {name} never forgot that day.",
            "They all laughed and went home together.",
            "{name} smiled all the way home.",
            "People still tell this story today.",
        )
        return f"{end} {self.rng.choice(MORALS)}" if self.rng.random() < 0.3 else end


def _lost(t: _Teller) -> list[str]:
    return [
        t.say(
            "{time}, {name} lost {his} {colour} {thing}.",
            "{time}, {his} {colour} {thing} was gone.",
            "{time}, {name} could not find {his} {thing} anywhere.",
        ),
        t.say(
            "{He} looked in every corner, but it was not there.",
            "{He} looked high and low all day.",
            "{He} searched the whole house and found only dust.",
        ),
        t.say(
            "Then {an_other} named {friend} came by and offered to help.",
            "{an_other} named {friend} saw that {name} was sad and stopped.",
            "{name} asked {a_trait_other} named {friend} for help.",
        ),
        t.say(
            "Together they found the {thing} {spot}.",
            "{friend} had a good nose and soon found the {thing} {spot}.",
            "At last they saw the {thing} {spot}, where the wind had left it.",
        ),
        t.say(
            "{name} thanked {friend} and shared some {fruits}.",
            "{name} hugged {friend} and said thank you.",
            "To say thank you, {name} made {meal} for both of them.",
        ),
    ]


def _rescue(t: _Teller) -> list[str]:
    return [
        t.say(
            "{time}, {name} heard {sound} near the path.",
            "{time}, {name} went out for a walk.",
            "{time}, {name} was looking for {fruits}.",
        ),
        t.say("There {he} saw {an_other}, {trouble}.", "{He} found {a_trait_other}, {trouble}."),
        t.say(
            "{name} had only {a_thing}, but {he} had an idea.",
            "{name} ran home and came back with {a_thing}.",
            '"Do not worry," said {name}, and {he} took out {a_colour_thing}.',
        ),
        t.say(
            "With the {thing}, {he} helped the {other} at once.", "It took a long time, but with the {thing} it worked."
        ),
        t.say(
            'The {other} said, "Thank you, my name is {friend}."',
            "The {other} was called {friend}, and {friend} was very thankful.",
            "The {other} smiled and gave {name} a basket of {fruits}.",
        ),
        t.say("They became good friends.", "After that they met every day.", "Now {name} had a friend for life."),
    ]


def _journey(t: _Teller) -> list[str]:
    return [
        t.say("{name} had always wanted to see {goal}.", "More than anything, {name} wished to see {goal}."),
        t.say(
            "{time}, {he} packed {a_thing} and some {fruits} and set out.",
            "{time}, {he} took {his} {thing} and began to walk.",
        ),
        t.say(
            "Soon {he} came to {hurdle}.",
            "On the way {he} had to cross {hurdle}.",
            "After a while, {hurdle} was in the way.",
        ),
        t.say(
            "{a_trait_other} named {friend} showed {him} a safe way.",
            "{name} sat down, thought for a while and found a way around.",
            "{name} was afraid, but {he} went on step by step.",
            "{He} used the {thing} and got past it.",
        ),
        t.say("At last {he} stood before {goal}.", "On the third day {he} reached {goal}."),
        t.say(
            "It was even more beautiful than in {his} dreams.",
            "{He} sat there until the sun went down.",
            "{He} was {feeling}.",
        ),
    ]


def _fear(t: _Teller) -> list[str]:
    return [
        t.say("{name} was afraid of {fear}.", "There was one thing that {name} did not like, and that was {fear}."),
        t.say("All the others laughed at {him}.", "{He} never told anyone about it.", "Only {his} mother knew."),
        t.say(
            "{time}, a little {other} was in trouble and called for help.",
            "{time}, {his} friend {friend} needed help.",
            "{time}, somebody had to bring {a_thing} to the old {other}.",
        ),
        t.say(
            "{name} forgot {his} fear and went at once.",
            "{name} took a deep breath and went.",
            "{name} held {his} {thing} tight and went.",
        ),
        t.say(
            "It was not so bad after all.",
            "To {his} surprise, nothing bad happened.",
            "With every step it became easier.",
        ),
        t.say("Since then {name} is not afraid of {fear} any more.", "Now everyone calls {him} brave {name}."),
    ]


def _contest(t: _Teller) -> list[str]:
    return [
        t.say(
            "{time}, there was {contest}, and the prize was {a_colour_thing}.",
            "Every year there was {contest}, and the winner got {a_thing}.",
        ),
        t.say("{name} wanted to win, and so did {an_other} named {friend}.", "{friend} the {other} was sure to win."),
        t.say(
            "{name} practised for many days.", "{name} was nervous and could hardly sleep.", "Everybody came to watch."
        ),
        t.say(
            "In the middle of it, {friend} fell down, and {name} stopped to help.",
            "Both of them did so well that nobody could choose.",
            "{name} made a mistake, laughed and went on.",
        ),
        t.say(
            "In the end they shared the {thing}.",
            "In the end {name} won the {thing} and gave it to {friend}.",
            "The {thing} went to {name}, and all clapped.",
        ),
    ]


def _making(t: _Teller) -> list[str]:
    return [
        t.say("{time}, {name} wanted to make {build}.", "{name} had a plan: {he} wanted to build {build}."),
        t.say("{He} had some wood, a rope and {a_thing}.", "{He} started at once with {a_thing} and a lot of hope."),
        t.say("The first try fell apart.", "It did not work at all.", "After an hour everything broke."),
        t.say(
            '"Let us try it together," said {friend} the {other}.',
            "{an_other} named {friend} came and had a better idea.",
            "{name} wanted to give up, but {friend} the {other} said no.",
        ),
        t.say(
            "They worked until the stars came out.", "They tried again, slowly this time.", "Piece by piece it grew."
        ),
        t.say("In the end it was the best work they had ever done.", "Then it was ready, and it was wonderful."),
    ]


def _sound(t: _Teller) -> list[str]:
    return [
        t.say("Late one night {name} woke up and heard {sound}.", "One night there was {sound} outside the window."),
        t.say(
            "{He} took {a_thing} and went to look.",
            "{He} lit a candle and opened the door.",
            "{He} hid under the blanket at first.",
        ),
        t.say("The moon was bright and the air was cold.", "It was very dark outside."),
        t.say("There, {spot}, sat a tiny {other}.", "{spot}, {he} found a little {other}."),
        t.say("It had lost its way home.", "It was hungry and cold.", "It was only looking for company."),
        t.say("{name} gave it {meal} and a warm bed.", "{name} gave it some {fruits} and a place by the fire."),
        t.say("They are friends to this day.", "In the morning they had breakfast together."),
    ]


def _sharing(t: _Teller) -> list[str]:
    return [
        t.say("{time}, {name} found a tree full of {fruits}.", "{name} had a big basket of {fruits}."),
        t.say("{He} wanted to keep them all.", '"These are all mine," said {name}.'),
        t.say(
            "Then {a_trait_other} named {friend} came along, tired and hungry.",
            "Soon {an_other} named {friend} looked at them with big eyes.",
        ),
        t.say("{name} thought for a moment and gave half of them away.", "{name} felt sorry and shared the {fruits}."),
        t.say(
            "The next day {friend} came back with {a_colour_thing} as a gift.",
            "Later, when {name} was in need, {friend} brought {a_thing} and helped.",
        ),
        t.say("It was the best {fruit} that {name} had ever tasted.", "{name} was {feeling}."),
    ]


def _seed(t: _Teller) -> list[str]:
    return [
        t.say("{time}, {name} planted a seed.", "{time}, {name} found a seed {spot} and planted it."),
        t.say("{He} gave it water every day.", "{He} sang to it every evening."),
        t.say(
            "For a long time nothing happened.",
            "Days went by and nothing grew.",
            '"Nothing will come of it," said the {other}.',
        ),
        t.say("But {name} did not give up.", "{name} waited and waited."),
        t.say(
            "Then one day there was a {colour} {flower}.", "In spring a small {flower} opened, as bright as the sun."
        ),
        t.say("Bees and birds came from far away to see it.", "{name} danced for joy."),
        t.say("{He} put {a_thing} next to it, to mark the place.", "{name} called the flower {friend}."),
    ]


def _gift(t: _Teller) -> list[str]:
    return [
        t.say(
            "{time}, it was {friend}'s birthday, and {name} had no gift.",
            "{name} wanted to give {friend} the {other} something special.",
        ),
        t.say("{He} went to the market and saw {a_colour_thing}.", "In a small shop {he} saw {a_thing}."),
        t.say("But {he} had no money.", "It cost more than {he} had."),
        t.say("So {he} helped the shopkeeper all day long.", "So {he} picked {fruits} and sold them one by one."),
        t.say("In the evening {he} could buy the {thing}."),
        t.say(
            '"This is the best gift of my life," said {friend}.',
            "When {friend} saw the {thing}, {friend} could not stop smiling.",
        ),
    ]


PLOTS = (_lost, _rescue, _journey, _fear, _contest, _making, _sound, _sharing, _seed, _gift)


def tell(rng: Random, hero: str | None = None, thing: str | None = None) -> Story:
    """A story; about `hero`, and with `thing` in it, if they are given."""
    while True:
        t = _Teller(rng, hero, thing)
        sentences = [t.opening(), *rng.choice(PLOTS)(t)]
        if len(sentences) > 5 and rng.random() < 0.7:
            sentences.append(t.closing())
        if thing is None or t.used_thing:
            return Story(" ".join(sentences), t.hero, t.name, t.thing if t.used_thing else None)
