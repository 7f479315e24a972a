"""The word lists: CC0 lists from `data/words`, and short lists of our own where the sentences need a closed set."""

import json
from functools import cache
from pathlib import Path
from random import Random

DATA = Path(__file__).parent / "data"


@cache
def load(name: str) -> tuple:
    """The list inside one of the files of dariusk/corpora (each holds a description and one list)."""
    content = json.loads((DATA / "words" / f"{name}.json").read_text("utf-8"))
    return tuple(next(value for value in content.values() if isinstance(value, list)))


def article(noun: str) -> str:
    """The noun with "a" or "an"."""
    odd = noun.startswith(("uni", "use", "utensil", "ewe", "eu", "one"))
    silent = noun.startswith(("hour", "honest", "heir"))
    spelled = noun.startswith(("x", "UX", "LO")) or noun[:3] in ("mp3", "tv ")
    vowel = (noun[0].lower() in "aeiou" and not odd) or silent or spelled
    return f"{'an' if vowel else 'a'} {noun}"


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def join(items: list[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


_SYLLABLES = (
    "ba",
    "lo",
    "mi",
    "ter",
    "son",
    "ga",
    "ru",
    "vi",
    "ken",
    "dor",
    "pa",
    "ni",
    "shu",
    "tal",
    "fe",
    "win",
    "oz",
    "qua",
    "je",
    "ly",
)
_SYLLABLES += (
    "bri",
    "cle",
    "den",
    "eth",
    "flo",
    "gre",
    "hu",
    "is",
    "jo",
    "kra",
    "mon",
    "nel",
    "or",
    "pre",
    "sta",
    "tru",
    "um",
    "wy",
    "xa",
    "zi",
)


def invented(rng: Random) -> str:
    """A word that no list has: who can copy it can copy anything."""
    return "".join(rng.choice(_SYLLABLES) for _ in range(rng.randint(1, 4)))


def plural(noun: str) -> str:
    if noun.endswith(("s", "x", "ch", "sh", "tomato", "potato", "mango")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


NAMES = tuple(name for name in load("firstNames") if name.isascii() and name.isalpha())
# Story heroes have a pronoun, so their names come from two lists of our own.
WOMEN = (
    "Ada", "Alice", "Amy", "Anna", "Bella", "Clara", "Daisy", "Dora", "Ella", "Emma", "Eva", "Fiona", "Flora",
    "Grace", "Hannah", "Ida", "Iris", "Jane", "Julia", "Kate", "Lara", "Lena", "Lily", "Lucy", "Maria", "Mia", "Mona",
    "Nina", "Nora", "Olga", "Paula", "Rosa", "Ruby", "Sara", "Sofia", "Tina", "Vera", "Wanda", "Yara", "Zoe",
)  # fmt: skip
MEN = (
    "Adam", "Albert", "Alex", "Ben", "Bruno", "Carl", "David", "Emil", "Felix", "Finn", "Frank", "Fred", "George",
    "Hans", "Henry", "Hugo", "Ivan", "Jack", "James", "John", "Leo", "Liam", "Louis", "Lucas", "Mark", "Martin",
    "Max", "Milo", "Noah", "Oscar", "Otto", "Paul", "Peter", "Ray", "Sam", "Simon", "Theo", "Tim", "Tom", "Walter",
)  # fmt: skip
# Animals whose plural or name reads oddly in a story are left out.
ANIMALS = tuple(
    a
    for a in load("animals")
    if " " not in a and a not in ("ape", "fish", "sheep", "deer", "ewe", "ox", "reptile", "ram", "hog")
)
FRUITS = tuple(f for f in load("fruits") if " " not in f and f not in ("nut", "date", "eggplant", "cucumber", "tomato"))
VEGETABLES = (
    "carrot",
    "onion",
    "potato",
    "turnip",
    "leek",
    "radish",
    "pumpkin",
    "parsnip",
    "beet",
    "mushroom",
    "artichoke",
    "zucchini",
)
FLOWERS = (
    "rose",
    "daisy",
    "tulip",
    "lily",
    "violet",
    "sunflower",
    "daffodil",
    "bluebell",
    "orchid",
    "marigold",
    "primrose",
    "buttercup",
)
OBJECTS = tuple(
    o
    for o in load("objects")
    if o.isalpha()
    and o.islower()
    and not o.endswith("s")
    and o not in ANIMALS
    and o not in FRUITS
    and o
    not in (
        "beef", "bread", "broccoli", "chalk", "dolphin", "dove", "food", "milk", "money", "paper", "perfume", "rhino",
        "shampoo", "shark", "soap", "toothpaste", "deodorant", "water", "chicken", "toilet", "whip", "dagger",
        "bonesaw", "lotion", "thread", "sharpie", "tv", "ipod", "lace", "chocolate", "conditioner", "tomato",
        "cucumber", "carrot", "outlet", "floor", "sidewalk", "fish", "sheep", "blowdryer", "puddle", "ocarina",
        "washcloth", "canteen", "canvas", "twister", "wishbone", "light", "spring", "house", "tree",
    )
)  # fmt: skip
# Things that a hero can carry
THINGS = (
    "bag", "balloon", "bell", "blanket", "book", "bottle", "bow", "bowl", "box", "bucket", "button", "camera",
    "candle", "clock", "coin", "comb", "cup", "drum", "feather", "flag", "flute", "hammer", "hat", "jar", "key",
    "kite", "ladder", "lamp", "lantern", "letter", "map", "marble", "mirror", "needle", "net", "notebook", "pen",
    "pencil", "pillow", "quilt", "ring", "rope", "scarf", "shell", "shovel", "spoon", "stick", "stone", "umbrella",
    "vase", "violin", "watch", "wheel", "whistle",
)  # fmt: skip
JOBS = tuple(
    o
    for o in load("occupations")
    if o.isalpha()
    and o.islower()
    and len(o) < 12
    and o
    not in (
        "undertaker", "trapper", "barback", "brazer", "caster", "checker", "cutter", "embalmer", "escort", "etcher",
        "faller", "hostler", "maid", "measurer", "molder", "mortician", "movers", "offbearer", "orderly", "orthotist",
        "roustabout", "sampler", "scaler", "shampooer", "shaper", "slaughterer", "solderer", "sorter", "taper",
        "tester", "trimmer", "weigher", "conciliator", "buyer", "rigger", "adjudicator", "arbitrator", "fabricator",
        "assembler", "model",
    )
)  # fmt: skip
# Odd subjects that nobody taught the model: it says so, and repeats the words.
TOPICS = tuple(
    dict.fromkeys(
        [o for o in load("occupations") if o.count(" ") == 1 and o.isascii()]
        + [o for o in load("objects") if o.count(" ") == 1 and o.isascii()]
        + [v for v in load("vegetables") if v.strip() == v]
        + list(load("flowers"))
    )
)
SUBJECTS = (
    "astronomy", "biology", "chemistry", "chess", "cooking", "cricket", "economics", "football", "gardening",
    "geology", "grammar", "gravity", "history", "jazz", "law", "magnets", "medicine", "money", "music", "opera",
    "painting", "philosophy", "physics", "poetry", "politics", "psychology", "quantum physics", "robots", "sailing",
    "science", "space travel", "tennis", "the internet", "the moon", "the ocean", "the stars", "the stock market",
    "the universe", "time travel", "volcanoes", "black holes", "trains", "computers", "dinosaurs", "movies", "art",
    "ballet", "surfing", "coffee", "photography",
)  # fmt: skip
COLOURS = (
    "red",
    "blue",
    "green",
    "yellow",
    "white",
    "black",
    "brown",
    "grey",
    "purple",
    "orange",
    "pink",
    "golden",
    "silver",
)
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

# The list is a few years old, and writes some names in index order.
_RENAMED = {
    "Antigua & Barbuda": "Antigua and Barbuda",
    "Bahamas": "the Bahamas",
    "Bosnia & Herzegovina": "Bosnia and Herzegovina",
    "Central African Republic": "the Central African Republic",
    "Comoros": "the Comoros",
    "Congo Democratic Republic": "the Democratic Republic of the Congo",
    "Cote D'Ivoire": "Ivory Coast",
    "Czech Republic": "the Czech Republic",
    "Dominican Republic": "the Dominican Republic",
    "Gambia": "the Gambia",
    "Macedonia": "North Macedonia",
    "Maldives": "the Maldives",
    "Marshall Islands": "the Marshall Islands",
    "Republic of Congo": "the Republic of the Congo",
    "Sao Tome & Principe": "São Tomé and Príncipe",
    "Seychelles": "the Seychelles",
    "Solomon Islands": "the Solomon Islands",
    "St. Kitts & Nevis": "St. Kitts and Nevis",
    "St. Vincent & The Grenadines": "St. Vincent and the Grenadines",
    "The Netherlands": "the Netherlands",
    "The Philippines": "the Philippines",
    "Trinidad & Tobago": "Trinidad and Tobago",
    "United Arab Emirates": "the United Arab Emirates",
    "United Kingdom": "the United Kingdom",
    "United States Of America": "the United States",
}
_MOVED = {"Burundi": "Gitega", "Kazakhstan": "Astana", "Moldova": "Chișinău", "Ukraine": "Kyiv"}
# country -> capital, the country as it stands inside a sentence
CAPITALS = {
    _RENAMED.get(c["name"], c["name"]): _MOVED.get(c["name"], c["capital"]) for c in load("countries_with_capitals")
}
CITIES = tuple(dict.fromkeys(CAPITALS.values()))
