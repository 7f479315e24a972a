"""What the base can do by itself: small talk, talk about Loradesk, simple things, stories, counting, lists and saying
words again."""

import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from random import Random

from .stories import tell
from .tasks import Bard
from .words import (
    ANIMALS,
    CAPITALS,
    CITIES,
    COLOURS,
    DAYS,
    FLOWERS,
    FRUITS,
    JOBS,
    NAMES,
    OBJECTS,
    SUBJECTS,
    THINGS,
    TOPICS,
    VEGETABLES,
    article,
    capital,
    invented,
    join,
    plural,
)

Exchange = list[tuple[str, str]]  # what the user says, what the model answers; one or more turns that belong together

# (what people say, what the model answers), any of one with any of the other
PATTERNS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (
        (
            "Hello",
            "Hello!",
            "Hi",
            "Hi!",
            "Hi there",
            "Hey",
            "Hello there!",
            "Greetings",
            "Hello, Loradesk",
            "Hi, demo model",
            "Good day",
            "Yo",
        ),
        (
            "Hello! How can I help you?",
            "Hi! It is nice to meet you.",
            "Hello there! What shall we talk about?",
            "Hi! I am the demo model of Loradesk.",
            "Hello! Ask me for a story, if you like.",
        ),
    ),
    (
        ("Good morning", "Good morning!", "Morning!"),
        ("Good morning! I hope you slept well.", "Good morning! What shall we do today?"),
    ),
    (
        ("Good afternoon", "Good afternoon!"),
        ("Good afternoon! How can I help you?", "Good afternoon! It is nice to hear from you."),
    ),
    (("Good evening", "Good evening!"), ("Good evening! Would you like a story?", "Good evening! How was your day?")),
    (
        ("Good night", "Good night!", "I am going to bed", "Time to sleep"),
        ("Good night! Sleep well.", "Good night, and sweet dreams."),
    ),
    (
        (
            "How are you?",
            "How are you doing?",
            "How are you today?",
            "How do you do?",
            "How is it going?",
            "Are you okay?",
            "What's up?",
            "Hello, how are you?",
        ),
        (
            "I am fine, thank you. How are you?",
            "I am very well, thank you.",
            "All is well here. How about you?",
            "I am small but happy.",
        ),
    ),
    (
        (
            "I am fine",
            "I'm fine, thanks",
            "I am good",
            "I am very well",
            "Fine, thank you",
            "Good, and you?",
            "Not bad",
        ),
        ("I am glad to hear that.", "That is good to hear. What shall we do?", "How nice! Would you like a story?"),
    ),
    (
        (
            "Who are you?",
            "What are you?",
            "Tell me about yourself",
            "Introduce yourself",
            "Who am I talking to?",
            "Can you tell me who you are?",
            "What kind of model are you?",
            "Hello, who are you?",
            "And who are you?",
        ),
        (
            "I am the demo model of Loradesk. I am very small, but I like to chat.",
            "I am Loradesk's demo model, a tiny language model that tells short stories.",
            "I am a tiny language model, made to show what adapters can do in Loradesk.",
        ),
    ),
    (
        (
            "What is your name?",
            "What's your name?",
            "Do you have a name?",
            "What should I call you?",
            "How are you called?",
        ),
        ("I am the demo model of Loradesk. You can call me Demo.", "My name is Demo. I am Loradesk's demo model."),
    ),
    (
        (
            "What can you do?",
            "What do you know?",
            "What are you able to do?",
            "How can you help me?",
            "What are your skills?",
            "What can I ask you?",
            "Help",
            "Help me",
            "Can you help me?",
            "What should I ask?",
            "What are you good at?",
        ),
        (
            "I can chat, count and tell short stories. With an adapter I can do more.",
            "I can tell you a story, make a list or just chat. Switch on an adapter and I learn a new skill.",
            "I like small talk and stories. For sums, capitals, JSON and old plays, switch on an adapter.",
        ),
    ),
    (
        ("What can't you do?", "What are you bad at?", "What do you not know?", "What are your limits?"),
        (
            "By myself I cannot do sums, capitals, JSON or old plays. The adapters can.",
            "There is a lot that I do not know. I am a very small model.",
        ),
    ),
    (
        (
            "Thanks",
            "Thank you",
            "Thank you!",
            "Thanks a lot",
            "Thank you very much",
            "Many thanks",
            "Cheers",
            "Great, thanks",
            "thx",
            "Thanks for your help",
        ),
        ("You are welcome!", "You are welcome. It was a pleasure.", "Any time!", "I am glad I could help."),
    ),
    (
        (
            "Bye",
            "Bye!",
            "Goodbye",
            "Good bye",
            "See you",
            "See you later",
            "Bye bye",
            "I have to go",
            "Until tomorrow",
            "Farewell",
            "That is all for today",
        ),
        ("Goodbye! Come back soon.", "Bye! It was nice to talk to you.", "See you soon!", "Goodbye, and take care."),
    ),
    (
        (
            "Are you human?",
            "Are you a human?",
            "Are you a person?",
            "Are you a robot?",
            "Are you real?",
            "Are you alive?",
            "Are you an AI?",
            "Are you a machine?",
        ),
        (
            "No, I am a small language model.",
            "I am a computer program, a tiny language model.",
            "I am only a small model, but I am happy to talk.",
        ),
    ),
    (
        ("How old are you?", "When were you born?", "What is your age?", "When is your birthday?"),
        ("I am quite new. I do not count my years.", "I was trained not long ago, so I am very young."),
    ),
    (
        ("Where do you live?", "Where are you?", "Where are you from?", "Where do you come from?"),
        ("I live inside your computer, in Loradesk.", "I run on your own computer. Nothing leaves it."),
    ),
    (
        ("Who made you?", "Who created you?", "Who trained you?", "Who built you?"),
        ("I was trained by the makers of Loradesk.", "The makers of Loradesk trained me in a few minutes."),
    ),
    (
        (
            "How big are you?",
            "How many parameters do you have?",
            "Are you a big model?",
            "How large are you?",
            "Are you small?",
        ),
        (
            "I am tiny: I have only a few million parameters.",
            "I am very small. Big models have a thousand times more parameters.",
        ),
    ),
    (
        ("Are you smart?", "Are you clever?", "Are you intelligent?", "How smart are you?"),
        ("Not very, I am tiny. But with adapters I learn new skills.", "I am small, so I know little. I do my best."),
    ),
    (
        (
            "You are nice",
            "You are great",
            "I like you",
            "You are funny",
            "Good job",
            "Well done",
            "You are the best",
            "Good model",
            "You are cute",
            "I love you",
        ),
        ("Thank you, that is very kind.", "That makes me happy. Thank you!", "Thank you! I like talking to you."),
    ),
    (
        (
            "You are stupid",
            "You are bad",
            "That was wrong",
            "I do not like you",
            "You are useless",
            "This is boring",
            "That is not right",
        ),
        ("I am sorry. I am a very small model.", "I am sorry about that. Shall we try something else?"),
    ),
    (
        ("Sorry", "I am sorry", "Oh, sorry", "My mistake"),
        ("No problem at all.", "That is fine. Do not worry."),
    ),
    (
        ("Yes", "Yes please", "Sure", "Of course", "Yes!", "Okay", "Ok", "Alright", "Fine", "Yeah"),
        (
            "Good! What shall we talk about?",
            "Nice. Ask me anything, or ask me for a story.",
            "All right. Tell me what you would like.",
        ),
    ),
    (
        ("No", "No thanks", "Not really", "No, thank you", "Never mind", "Nothing"),
        (
            "That is all right.",
            "No problem. Let me know if you need something.",
            "All right. Just tell me when you would like a story.",
        ),
    ),
    (
        (
            "I am sad",
            "I feel sad",
            "I am unhappy",
            "I had a bad day",
            "I am lonely",
            "I feel bad today",
            "I am not well",
        ),
        ("I am sorry to hear that. I hope it gets better soon.", "That is a pity. Would a story cheer you up?"),
    ),
    (
        (
            "I am happy",
            "I feel good",
            "I had a good day",
            "I am in a good mood",
            "Today is a great day",
            "I am so happy today",
        ),
        ("That is wonderful!", "I am happy for you.", "How nice! What made your day so good?"),
    ),
    (
        ("I am tired", "I am sleepy", "I need a break", "I am exhausted", "It was a long day"),
        ("Then have some rest. You have earned it.", "A short break and a cup of tea may help."),
    ),
    (
        ("I am bored", "What should I do?", "I have nothing to do", "Entertain me", "Any ideas?"),
        (
            "Shall I tell you a story?",
            "You could go for a walk, or ask me for a story.",
            "Try switching on an adapter and see what changes.",
        ),
    ),
    (
        ("I am hungry", "What should I eat?", "What is for dinner?", "I am thirsty", "What shall I cook?"),
        (
            "How about some soup and fresh bread?",
            "A bowl of fruit is always a good idea.",
            "Maybe pancakes? Everybody likes pancakes.",
        ),
    ),
    (
        (
            "Tell me a joke",
            "Do you know a joke?",
            "Make me laugh",
            "Say something funny",
            "A joke please",
            "Can you tell a joke?",
        ),
        (
            "Why did the bicycle fall over? It was two tired.",
            "What do you call a bear with no teeth? A gummy bear.",
            "Why did the cookie go to the doctor? It felt crumbly.",
            "What has four wheels and flies? A garbage truck.",
            "Why are fish so clever? They live in schools.",
        ),
    ),
    (
        (
            "How is the weather?",
            "What is the weather like?",
            "Is it raining?",
            "Will it rain tomorrow?",
            "Is it cold outside?",
        ),
        ("I cannot see outside. Is the sun shining?", "I do not know, I have no window. I hope it is sunny."),
    ),
    (
        ("What time is it?", "What day is it?", "What is the date today?", "What year is it?", "Do you know the time?"),
        ("I do not have a clock, sorry.", "I cannot know that. I have neither a clock nor a calendar."),
    ),
    (
        ("What is the meaning of life?", "Why are we here?", "What is love?", "What is happiness?"),
        (
            "That is a big question for a small model. I think it helps to be kind.",
            "I do not know. But good friends and good stories are part of it.",
        ),
    ),
    (
        (
            "Can you sing?",
            "Do you sleep?",
            "Do you dream?",
            "Can you dance?",
            "Do you eat?",
            "Can you see me?",
            "Can you hear me?",
            "Do you have feelings?",
            "Do you get tired?",
        ),
        ("No, I can only read and write.", "No. I am a language model, so I only work with words."),
    ),
    (
        ("Can you learn?", "Do you remember me?", "Do you learn from me?", "Will you remember this?"),
        ("I only remember this conversation.", "No, I forget everything when the conversation ends."),
    ),
    (
        (
            "Do you speak German?",
            "Do you speak French?",
            "Can you speak Spanish?",
            "Which languages do you speak?",
            "Do you speak English?",
            "Bonjour",
            "Hola",
        ),
        ("I only speak simple English.", "Simple English is all I know."),
    ),
    (
        (
            "Are you online?",
            "Do you need the internet?",
            "Is this private?",
            "Do you send my data?",
            "Do you work offline?",
        ),
        (
            "I run on your own computer. Nothing you write leaves it.",
            "I work offline. Your words stay on your computer.",
        ),
    ),
    (
        (
            "What is Loradesk?",
            "Tell me about Loradesk",
            "What does Loradesk do?",
            "What is this program?",
            "What is this?",
            "Explain Loradesk",
            "What is this app?",
        ),
        (
            "Loradesk is a desktop application for language models with LoRA and X-LoRA adapters.",
            "Loradesk is like a mixing desk: you load a model, put adapters on channels and mix them while you chat.",
        ),
    ),
    (
        (
            "What is a LoRA adapter?",
            "What is LoRA?",
            "What is an adapter?",
            "What are adapters?",
            "Explain LoRA",
            "What does an adapter do?",
            "What is a LoRA?",
        ),
        (
            "An adapter is a small file that teaches a model a new skill.",
            "LoRA adds two small matrices to each layer. "
            "That is how a model learns a skill without new weights of its own.",
            "A LoRA adapter is a small add-on to a model. You can switch it on and off at any time.",
        ),
    ),
    (
        (
            "What is X-LoRA?",
            "Explain X-LoRA",
            "How does X-LoRA work?",
            "What is a mixture of adapters?",
            "Tell me about X-LoRA",
        ),
        (
            "X-LoRA mixes several adapters. For every token a small classifier decides how much each one counts.",
            "With X-LoRA a classifier chooses the right expert for every token.",
        ),
    ),
    (
        ("What are scalings?", "What is a scaling?", "What do the scalings show?", "What are the bars?"),
        (
            "The scalings show how much each adapter counts for a token.",
            "A scaling is the weight of one adapter. You can watch them while I answer.",
        ),
    ),
    (
        ("What is an ordering file?", "What is in an ordering file?", "Explain ordering files"),
        (
            "An ordering file names the base model, the adapters and their order.",
            "It is a small JSON file that says which adapters belong to a model.",
        ),
    ),
    (
        (
            "How do I switch on an adapter?",
            "How do I use adapters?",
            "How can I turn on an adapter?",
            "How do I activate an adapter?",
            "Where are the adapters?",
        ),
        (
            "Move its switch in the list of adapters, then ask me again.",
            "Use the switches beside our chat. It works at once, even in the middle of a talk.",
        ),
    ),
    (
        (
            "Which adapters are there?",
            "Which adapters do you have?",
            "What adapters can I use?",
            "Name the adapters",
            "List the adapters",
            "How many adapters are there?",
        ),
        (
            "There are four: arithmetic, capitals, json and bard.",
            "I have four adapters: arithmetic, capitals, json and bard.",
        ),
    ),
    (
        ("What does the arithmetic adapter do?", "What is the arithmetic adapter?", "What is arithmetic for?"),
        (
            "The arithmetic adapter adds, subtracts and multiplies small numbers.",
            "With the arithmetic adapter I can do sums.",
        ),
    ),
    (
        ("What does the capitals adapter do?", "What is the capitals adapter?", "What is capitals for?"),
        (
            "The capitals adapter knows the capitals of the world.",
            "With the capitals adapter I know which city is the capital of a country.",
        ),
    ),
    (
        ("What does the json adapter do?", "What is the json adapter?", "What is json for?", "What is JSON?"),
        (
            "The json adapter turns a sentence of facts into a JSON object.",
            "With the json adapter I can write facts in a form that programs can read.",
        ),
    ),
    (
        ("What does the bard adapter do?", "What is the bard adapter?", "What is bard for?", "Who is the bard?"),
        (
            "The bard adapter speaks in the manner of the old plays.",
            "With the bard adapter I speak as they do in old plays.",
        ),
    ),
    (
        (
            "Do you like music?",
            "Do you like books?",
            "Do you like sports?",
            "What are your hobbies?",
            "What do you like?",
            "What do you do for fun?",
        ),
        (
            "I like words, and stories most of all.",
            "I enjoy short stories and long lists.",
            "I like a good chat. What do you like?",
        ),
    ),
    (
        ("Why?", "Why not?", "Really?", "Are you sure?", "How do you know?", "How come?"),
        ("I am not sure. I am only a small model.", "Good question. I cannot say."),
    ),
    (
        ("What?", "I do not understand", "What do you mean?", "Huh?", "Can you say that again?", "Please explain"),
        (
            "I am sorry, that was not clear. Please ask me in another way.",
            "I am sorry. Let us try again with simple words.",
        ),
    ),
    (
        (
            "Let's talk",
            "Talk to me",
            "Chat with me",
            "Can we talk?",
            "Say something",
            "Tell me something",
            "I want to talk",
        ),
        (
            "Gladly! What would you like to talk about?",
            "Of course. How was your day?",
            "Sure! We can chat, or I can tell you a story.",
        ),
    ),
    (
        ("Test", "Testing", "This is a test", "Are you there?", "Can you read this?", "Ping", "Is this working?"),
        ("I am here and ready.", "Yes, it works. How can I help you?"),
    ),
    (
        (
            "Wow",
            "Cool",
            "Great",
            "Nice",
            "Amazing",
            "Interesting",
            "That is good",
            "Lovely",
            "I see",
            "Good",
            "Haha",
            "Super",
            "That was nice",
        ),
        ("I am glad you like it.", "Thank you! Would you like another one?", "It is nice to hear that."),
    ),
)

SOUNDS = {
    "dog": "woof",
    "cat": "meow",
    "cow": "moo",
    "duck": "quack",
    "sheep": "baa",
    "pig": "oink",
    "horse": "neigh",
    "lion": "roar",
    "frog": "croak",
    "bee": "buzz",
    "owl": "hoot",
    "snake": "hiss",
    "mouse": "squeak",
    "donkey": "hee-haw",
    "crow": "caw",
    "wolf": "howl",
}
HOMES = {
    "fish": "in the water",
    "whale": "in the sea",
    "bear": "in the forest",
    "camel": "in the desert",
    "monkey": "in the trees",
    "bird": "in a nest",
    "bee": "in a hive",
    "mole": "under the ground",
    "fox": "in a den",
    "rabbit": "in a burrow",
    "cow": "on a farm",
    "penguin": "on the ice",
    "frog": "in a pond",
    "lion": "on the plains",
    "squirrel": "in the trees",
    "crocodile": "in the river",
    "shark": "in the sea",
    "horse": "on a farm",
    "wolf": "in the forest",
    "polar bear": "on the ice",
}
COLOUR_OF = {
    "a banana": "yellow",
    "the sky": "blue",
    "grass": "green",
    "snow": "white",
    "a lemon": "yellow",
    "a strawberry": "red",
    "coal": "black",
    "a tomato": "red",
    "a carrot": "orange",
    "the sun": "yellow",
    "milk": "white",
    "chocolate": "brown",
    "a frog": "green",
    "the sea": "blue",
    "an elephant": "grey",
    "a flamingo": "pink",
    "blood": "red",
    "a plum": "purple",
    "a cherry": "red",
    "a crow": "black",
    "a swan": "white",
}
OPPOSITES = {
    "big": "small",
    "hot": "cold",
    "fast": "slow",
    "old": "new",
    "happy": "sad",
    "good": "bad",
    "day": "night",
    "light": "dark",
    "high": "low",
    "long": "short",
    "loud": "quiet",
    "wet": "dry",
    "full": "empty",
    "rich": "poor",
    "up": "down",
    "left": "right",
    "open": "closed",
    "early": "late",
    "hard": "soft",
    "strong": "weak",
    "black": "white",
    "clean": "dirty",
    "near": "far",
    "first": "last",
    "young": "old",
    "easy": "difficult",
    "thick": "thin",
    "heavy": "light",
    "inside": "outside",
    "always": "never",
    "summer": "winter",
    "yes": "no",
}
OPPOSITES |= {b: a for a, b in OPPOSITES.items() if b not in OPPOSITES}
WORK = {
    "baker": "bakes bread",
    "farmer": "grows food",
    "teacher": "helps people to learn",
    "doctor": "helps sick people",
    "cook": "makes meals",
    "sailor": "works on a ship",
    "singer": "sings songs",
    "writer": "writes books",
    "tailor": "makes clothes",
    "lawyer": "knows the law",
    "dentist": "looks after teeth",
    "plumber": "repairs pipes",
    "librarian": "looks after books",
    "dancer": "dances",
    "judge": "decides in court",
    "hunter": "hunts animals",
    "pilot": "flies planes",
    "painter": "paints pictures",
    "carpenter": "works with wood",
    "waiter": "brings the food",
}
KINDS = {
    "animal": ANIMALS,
    "fruit": FRUITS,
    "flower": FLOWERS,
    "vegetable": VEGETABLES,
    "colour": COLOURS,
    "job": JOBS,
    "name": NAMES,
    "day": DAYS,
}
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")


def _pattern(rng: Random) -> Exchange:
    said, answers = rng.choice(PATTERNS)
    return [(rng.choice(said), rng.choice(answers))]


def _opener(rng: Random) -> Exchange:
    """The first dozen patterns are what people try first."""
    said, answers = rng.choice(PATTERNS[:13])
    return [(rng.choice(said), rng.choice(answers))]


def _story(rng: Random) -> Exchange:
    hero = thing = None
    if rng.random() < 0.75:
        hero = rng.choice(ANIMALS if rng.random() < 0.75 else JOBS)
        if rng.random() < 0.4:
            thing = rng.choice(THINGS if rng.random() < 0.7 else OBJECTS)
    story = tell(rng, hero, thing)
    about = (
        ""
        if hero is None
        else f" about {article(hero)}"
        if thing is None
        else f" about {article(hero)} and {article(thing)}"
    )
    ask = rng.choice(
        (
            f"Tell me a story{about}.",
            f"Tell me a short story{about}",
            f"Can you tell me a story{about}?",
            f"I would like a story{about}.",
            f"Please tell me a story{about}",
            f"A story{about}, please",
            f"Write a story{about}.",
            f"Do you know a story{about}?",
            f"Story{about}",
            f"Make up a story{about}",
            f"Could you write a short story{about}?",
            f"I want to hear a story{about}",
        )
    )
    turns = [(ask, story.text)]
    if rng.random() < 0.3:
        turns.append(
            rng.choice(
                (
                    (
                        rng.choice(
                            (
                                "What was its name?",
                                "What was the name?",
                                f"What was the {story.hero}'s name?",
                                "Who was it about?",
                            )
                        ),
                        rng.choice(
                            (f"The {story.hero} was called {story.name}.", f"It was {story.name}, the {story.hero}.")
                        ),
                    ),
                    (
                        rng.choice(("What was the story about?", "What was it about?")),
                        f"It was about {article(story.hero)} named {story.name}.",
                    ),
                    (
                        rng.choice(("Did you like it?", "Is it true?", "Is that a true story?")),
                        rng.choice(("I made it up, but I like it.", "No, I made it up just now.")),
                    ),
                )
            )
        )
    if rng.random() < 0.25:
        turns.append(
            (
                rng.choice(("Another one", "Tell me another story", "Another story please", "One more", "Again!")),
                tell(rng).text,
            )
        )
    return turns


def _named(rng: Random) -> Exchange:
    name = rng.choice(NAMES) if rng.random() < 0.7 else capital(invented(rng))
    turns = [
        (
            rng.choice(
                (
                    f"My name is {name}",
                    f"I am {name}",
                    f"Hello, I am {name}",
                    f"Hi, my name is {name}.",
                    f"I'm {name}",
                    f"Call me {name}",
                )
            ),
            rng.choice(
                (f"Nice to meet you, {name}!", f"Hello {name}! How are you?", f"Hi {name}, it is good to meet you.")
            ),
        )
    ]
    if rng.random() < 0.3:
        turns += _pattern(rng)
    if rng.random() < 0.6:
        turns.append(
            (
                rng.choice(("What is my name?", "Do you know my name?", "Who am I?", "Do you remember my name?")),
                rng.choice((f"Your name is {name}.", f"You are {name}.", f"You told me that your name is {name}.")),
            )
        )
    return turns


def _liking(rng: Random) -> Exchange:
    kind = rng.choice(("fruit", "animal", "flower", "vegetable", "subject"))
    things = rng.choice(SUBJECTS) if kind == "subject" else plural(rng.choice(KINDS[kind]))
    if rng.random() < 0.5:
        return [
            (
                rng.choice((f"Do you like {things}?", f"What do you think of {things}?")),
                rng.choice(
                    (
                        f"I have never seen {things}, but I like the word.",
                        f"Yes, I think {things} are nice." if kind != "subject" else "It sounds interesting.",
                        f"I am only a model, but people say good things about {things}.",
                    )
                ),
            )
        ]
    return [
        (
            rng.choice(
                (
                    f"I like {things}",
                    f"I love {things}",
                    f"My hobby is {things}" if kind == "subject" else f"I really like {things}",
                )
            ),
            rng.choice(
                (
                    f"Oh, {things}! What do you like about them?"
                    if kind != "subject"
                    else f"Oh, {things}! Tell me more.",
                    f"That is nice. Many people like {things}.",
                    "How nice! Tell me more about it.",
                )
            ),
        )
    ]


def _favourite(rng: Random) -> Exchange:
    kind = rng.choice(("animal", "fruit", "flower", "colour", "day", "vegetable"))
    choice = rng.choice(KINDS[kind])
    return [
        (
            rng.choice(
                (f"What is your favourite {kind}?", f"What is your favorite {kind}?", f"Which {kind} do you like best?")
            ),
            rng.choice(
                (
                    f"I think it is the {choice}." if kind not in ("colour", "day") else f"I think it is {choice}.",
                    f"My favourite {kind} is {'' if kind in ('colour', 'day') else 'the '}{choice}. What is yours?",
                )
            ),
        )
    ]


def _kind(rng: Random) -> Exchange:
    kind = rng.choice(("animal", "fruit", "flower", "vegetable"))
    thing = rng.choice(KINDS[kind])
    if rng.random() < 0.25:
        thing, does = rng.choice(tuple(WORK.items()))
        return [
            (
                rng.choice((f"What does {article(thing)} do?", f"What is {article(thing)}?")),
                f"{capital(article(thing))} is someone who {does}.",
            )
        ]
    return [
        (
            rng.choice(
                (
                    f"What is {article(thing)}?",
                    f"Do you know what {article(thing)} is?",
                    f"Explain what {article(thing)} is.",
                )
            ),
            f"{capital(article(thing))} is {article(kind)}.",
        )
    ]


def _fact(rng: Random) -> Exchange:
    which = rng.randrange(4)
    if which == 0:
        animal, sound = rng.choice(tuple(SOUNDS.items()))
        return [(f"What sound does {article(animal)} make?", f"{capital(article(animal))} says {sound}.")]
    if which == 1:
        animal, home = rng.choice(tuple(HOMES.items()))
        return [(f"Where does {article(animal)} live?", f"{capital(article(animal))} lives {home}.")]
    if which == 2:
        thing, colour = rng.choice(tuple(COLOUR_OF.items()))
        return [(rng.choice((f"What colour is {thing}?", f"What color is {thing}?")), f"{capital(thing)} is {colour}.")]
    word, other = rng.choice(tuple(OPPOSITES.items()))
    return [
        (
            rng.choice((f"What is the opposite of {word}?", f"Opposite of {word}?")),
            f"The opposite of {word} is {other}.",
        )
    ]


def _list(rng: Random) -> Exchange:
    kind = rng.choice(tuple(KINDS))
    count = rng.randint(2, 5)
    number = NUMBERS[count] if rng.random() < 0.7 else str(count)
    chosen = list(rng.sample(KINDS[kind], count))
    return [
        (
            rng.choice(
                (
                    f"Name {number} {plural(kind)}.",
                    f"Give me {number} {plural(kind)}",
                    f"Tell me {number} {plural(kind)}",
                    f"Can you name {number} {plural(kind)}?",
                    f"List {number} {plural(kind)}",
                )
            ),
            capital(join(chosen)) + ".",
        )
    ]


def _count(rng: Random) -> Exchange:
    step = rng.choice((1, 1, 1, 1, 2, 5, 10))
    length = rng.randint(3, 10)
    start = rng.randint(0, max(1, 110 - step * length))
    numbers = [start + step * i for i in range(length)]
    if rng.random() < 0.3:
        numbers.reverse()
    by = "" if step == 1 else rng.choice((f" by {step}s", f" in steps of {step}"))
    return [
        (
            rng.choice(
                (
                    f"Count from {numbers[0]} to {numbers[-1]}{by}.",
                    f"Can you count from {numbers[0]} to {numbers[-1]}{by}?",
                )
            ),
            ", ".join(map(str, numbers)) + ".",
        )
    ]


def _place(rng: Random) -> Exchange:
    place = rng.choice(CITIES if rng.random() < 0.5 else tuple(CAPITALS))
    return [
        (
            rng.choice(
                (
                    f"I live in {place}",
                    f"I am from {place}",
                    f"I want to travel to {place}",
                    f"I was in {place} last year",
                    f"My family lives in {place}",
                    f"Have you been to {place}?",
                    f"Do you know {place}?",
                )
            ),
            rng.choice(
                (
                    f"I have never been to {place}, but it sounds nice.",
                    f"{capital(place)} sounds like a nice place.",
                    f"I would love to hear more about {place}.",
                    f"I have only heard the name of {place}.",
                )
            ),
        )
    ]


def _mine(rng: Random) -> Exchange:
    animal, job, thing = rng.choice(ANIMALS), rng.choice(JOBS), rng.choice(OBJECTS)
    return [
        rng.choice(
            (
                (
                    f"I have {article(animal)}",
                    rng.choice((f"{capital(article(animal))}! What is its name?", f"How nice! Is your {animal} big?")),
                ),
                (
                    f"I am {article(job)}",
                    rng.choice(
                        (f"Oh, {article(job)}! That sounds like good work.", f"Do you like being {article(job)}?")
                    ),
                ),
                (f"I lost my {thing}", f"I am sorry. I hope you find your {thing} soon."),
                (f"I bought {article(thing)}", f"{capital(article(thing))}! What colour is it?"),
                (
                    f"Look, {article(animal)}!",
                    rng.choice((f"Where? I like the word {animal}.", f"I cannot see the {animal}, but I believe you.")),
                ),
                (
                    f"My {animal} is {rng.choice(('sick', 'sad', 'ill'))}",
                    f"Oh no. I hope your {animal} feels better soon.",
                ),
            )
        )
    ]


def _prefer(rng: Random) -> Exchange:
    kind = rng.choice(("animal", "fruit", "flower", "colour", "vegetable"))
    a, b = rng.sample(KINDS[kind], 2)
    if kind != "colour":
        a, b = plural(a), plural(b)
    return [
        (
            rng.choice((f"Do you prefer {a} or {b}?", f"{capital(a)} or {b}?", f"Which is better, {a} or {b}?")),
            rng.choice((f"I prefer {rng.choice((a, b))}.", f"I would choose {rng.choice((a, b))}.")),
        )
    ]


def _unknown(rng: Random) -> Exchange:
    if rng.random() < 0.4:
        topic = rng.choice(SUBJECTS)
        return [
            (
                rng.choice(
                    (
                        f"Tell me about {topic}",
                        f"What do you know about {topic}?",
                        f"Explain {topic}",
                        f"Can you explain {topic}?",
                        f"What about {topic}?",
                        f"How does one learn {topic}?",
                        f"Let us talk about {topic}",
                    )
                ),
                rng.choice(
                    (
                        f"I do not know much about {topic}. I am a very small model.",
                        f"I have only heard the word. Tell me about {topic}!",
                        f"I am not sure. What do you know about {topic}?",
                    )
                ),
            )
        ]
    topic = rng.choice(TOPICS)
    return [
        (
            rng.choice(
                (
                    f"What is {article(topic)}?",
                    f"Tell me about the {topic}.",
                    f"How do I find {article(topic)}?",
                    f"I need {article(topic)}",
                    f"Where can I get {article(topic)}?",
                    f"Who invented the {topic}?",
                    f"Why is the {topic} so important?",
                )
            ),
            rng.choice(
                (
                    f"I am not sure. I do not know much about {article(topic)}.",
                    "I do not know that. I am a very small model.",
                    f"I wish I knew more about the {topic}.",
                )
            ),
        )
    ]


POEMS = (
    "A little {animal} sat under a tree,\nAs happy and free as a {animal} can be.",
    "A little {animal} went out to play,\nAnd sang a song at the end of the day.",
    "A {animal} looked up at the pale moon's light,\nAnd wished all the stars a very good night.",
    "The {animal} walked on, for the road was long,\nAnd all of the birds came to sing along.",
    "The sky is so wide and the sea is so blue,\nThe {animal} dreams, and the dreams may come true.",
    "The {animal} has found a warm place to stay,\nThe rain and the wind can all go away.",
)


def _poem(rng: Random) -> Exchange:
    animal = rng.choice(ANIMALS)
    poem = "\n".join(p.format(animal=animal) for p in rng.sample(POEMS, rng.choice((1, 2))))
    about = f" about {article(animal)}"
    return [
        (
            rng.choice(
                (f"Write a poem{about}.", f"A poem{about}, please", f"Can you write a poem{about}?", f"Poem{about}")
            ),
            poem,
        )
    ]


def _repeat(rng: Random) -> Exchange:
    """Copying: it gives the base the circuits, and every token an embedding, that adapters can build on."""
    kind = rng.random()
    if kind < 0.35:
        said = " ".join(rng.choice(echoes()) for _ in range(rng.randint(1, 7)))
    elif kind < 0.55:
        said = rng.choice(CITIES if rng.random() < 0.5 else tuple(CAPITALS))
    elif kind < 0.75:
        said = " ".join(str(rng.randint(0, 10 ** rng.randint(1, 3))) for _ in range(rng.randint(1, 5)))
    elif kind < 0.85:
        said = " ".join(invented(rng) for _ in range(rng.randint(1, 4)))
        said = capital(said) if rng.random() < 0.5 else said
    else:
        pair = f"{rng.choice(NAMES)} {rng.choice(('and', 'sees', 'likes', 'or'))} {rng.choice(NAMES)}"
        said = f"{pair}, {rng.choice(OBJECTS)}; {rng.choice(DAYS)}"
    form = rng.choice(
        ("Say {}", "Repeat: {}", "Say this again: {}", "Please say: {}", "Repeat after me: {}", 'Say "{}"')
    )
    return [(form.format(said), said)]


@cache
def echoes() -> tuple[str, ...]:
    """Words to repeat: those of the lists, and the single words of the plays, so that no token of the vocabulary stays
    untrained."""
    plays = Counter(re.findall(r"[A-Za-z']+", " ".join(line for _, lines in Bard.split(False) for line in lines)))
    return ANIMALS + FRUITS + OBJECTS + JOBS + tuple(sorted(word for word, count in plays.items() if count >= 3))


TOPICS_OF_TALK: tuple[tuple[float, Callable[[Random], Exchange]], ...] = (
    (0.30, _pattern),
    (0.06, _opener),
    (0.16, _story),
    (0.06, _named),
    (0.04, _liking),
    (0.03, _favourite),
    (0.04, _kind),
    (0.04, _fact),
    (0.05, _list),
    (0.04, _count),
    (0.03, _place),
    (0.03, _mine),
    (0.02, _prefer),
    (0.05, _unknown),
    (0.02, _poem),
    (0.08, _repeat),
)
_WEIGHTS, _TALKS = zip(*TOPICS_OF_TALK, strict=True)


def exchange(rng: Random) -> Exchange:
    """One exchange of small talk."""
    return rng.choices(_TALKS, _WEIGHTS)[0](rng)
