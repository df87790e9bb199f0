"""Questions that need no picture: sums, opposites, days, colours of things, and what cannot be known."""

from collections.abc import Callable, Sequence

from muomni.data.synthetic.draws import Draw, is_held_out
from muomni.data.synthetic.item import Item, sentence

OPPOSITES = {
    "hot": "cold", "big": "small", "up": "down", "day": "night", "happy": "sad", "fast": "slow", "open": "closed",
    "full": "empty", "old": "young", "wet": "dry", "hard": "soft", "light": "dark", "loud": "quiet", "high": "low",
    "early": "late", "near": "far", "left": "right", "first": "last", "clean": "dirty", "long": "short",
    "thick": "thin", "strong": "weak", "rich": "poor", "true": "false", "inside": "outside", "win": "lose",
    "begin": "end", "push": "pull", "buy": "sell", "give": "take", "love": "hate", "warm": "cool", "good": "bad",
    "sweet": "sour", "awake": "asleep", "same": "different", "summer": "winter", "morning": "evening",
}  # fmt: skip
COLOURS_OF = {
    "grass": "green", "snow": "white", "coal": "black", "banana": "yellow", "blood": "red", "sky": "blue",
    "carrot": "orange", "milk": "white", "chocolate": "brown", "lemon": "yellow", "cherry": "red", "night": "black",
    "leaf": "green", "sea": "blue", "pumpkin": "orange", "salt": "white", "tomato": "red", "frog": "green",
    "crow": "black", "cucumber": "green", "strawberry": "red", "sun": "yellow", "bear": "brown", "cloud": "white",
    "flamingo": "pink", "plum": "purple", "pea": "green", "swan": "white", "fox": "red", "lavender": "purple",
}  # fmt: skip
# Of those, what has no "a" before it, and what there is one of.
_MASS = {"grass", "snow", "coal", "blood", "milk", "chocolate", "salt", "lavender"}
_ONLY = {"sky", "night", "sea", "sun"}
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_ANIMALS = {
    "dog": "barks", "cat": "meows", "cow": "moos", "duck": "quacks", "sheep": "bleats", "lion": "roars",
    "bee": "buzzes", "snake": "hisses", "horse": "neighs", "pig": "grunts", "wolf": "howls", "rooster": "crows",
}  # fmt: skip
_LEGS = {
    "dog": "four", "bird": "two", "spider": "eight", "ant": "six", "cat": "four", "fish": "none", "snake": "none",
    "bee": "six", "horse": "four", "chicken": "two", "cow": "four", "duck": "two",
}  # fmt: skip
_NOT_KNOWN = (
    "What did I eat this morning?", "What is my name?", "How old am I?", "Where do I live?", "What am I thinking of?",
    "What will the weather be tomorrow?", "What time is it?", "Who is at the door?", "What is in my pocket?",
    "Which day is it today?", "What colour is my house?", "What is my brother called?", "Is it raining here?",
    "How many people are in this room?", "What am I wearing?", "Where are my keys?", "What did I say yesterday?",
    "Who will win the game?", "What is behind me?", "How much money do I have?", "When is my birthday?",
)  # fmt: skip
NOT_KNOWN = "I do not know. I cannot see or remember that."


def facts(draw: Draw) -> Item:
    """One of all kinds of question without a picture."""
    return draw.one(_KINDS)(draw)


def _sum(draw: Draw) -> Item:
    sign = draw.one("+-×")

    def pair() -> tuple[int, int]:
        if sign == "×":
            return draw.random.randint(0, 10), draw.random.randint(0, 10)
        a, b = draw.random.randint(0, 20), draw.random.randint(0, 20)
        return (max(a, b), min(a, b)) if sign == "-" else (a, b)

    a, b = draw.allowed(pair, lambda made: is_held_out(sign, *made))
    word = {"+": "plus", "-": "minus", "×": "times"}[sign]
    value = {"+": a + b, "-": a - b, "×": a * b}[sign]
    forms = (f"What is {a} {word} {b}?", f"How much is {a} {word} {b}?", f"{a} {word} {b}?", f"Compute {a} {word} {b}.")
    return Item("facts/sum", draw.one(forms), sentence(str(value)))


def _from_table(
    kind: str, table: Sequence[tuple[str, str]], questions: Callable[[str], Sequence[str]]
) -> Callable[[Draw], Item]:
    """Questions of which each pair of a wording and an entry may be held out: the fact itself is learnt."""
    choices = tuple(sorted({sentence(answer) for _, answer in table}))

    def make(draw: Draw) -> Item:
        def one() -> tuple[int, tuple[str, str]]:
            return draw.random.randrange(len(questions("x"))), draw.one(table)

        form, (key, answer) = draw.allowed(one, lambda made: is_held_out(kind, made[0], made[1][0]))
        return Item(f"facts/{kind}", questions(key)[form], sentence(answer), choices)

    return make


def _named(thing: str) -> str:
    return thing if thing in _MASS else f"the {thing}" if thing in _ONLY else f"a {thing}"


def _turned(table: dict[str, str]) -> list[tuple[str, str]]:
    return [*table.items(), *((value, key) for key, value in table.items())]


def _next(names: Sequence[str]) -> list[tuple[str, str]]:
    return [(name, names[(place + 1) % len(names)]) for place, name in enumerate(names)]


def _count(draw: Draw) -> Item:
    first, length = draw.allowed(
        lambda: (draw.random.randint(0, 20), draw.random.randint(3, 6)), lambda made: is_held_out("count", *made)
    )
    last = first + length - 1
    forms = (f"Count from {first} to {last}.", f"Can you count from {first} to {last}?")
    return Item("facts/count", draw.one(forms), sentence(", ".join(map(str, range(first, last + 1)))))


def _larger(draw: Draw) -> Item:
    a, b = draw.allowed(
        lambda: tuple(draw.random.sample(range(100), 2)), lambda made: is_held_out("larger", *sorted(made))
    )
    larger = draw.chance(0.5)
    word = draw.one(("larger", "bigger", "greater")) if larger else draw.one(("smaller", "less"))
    return Item("facts/larger", f"Which is {word}, {a} or {b}?", sentence(str(max(a, b) if larger else min(a, b))))


def _spell(draw: Draw) -> Item:
    words = sorted({*OPPOSITES, *COLOURS_OF, *_ANIMALS})
    word = draw.allowed(lambda: draw.one(words), lambda made: is_held_out("spell", made))
    text = draw.one((f"Spell {word}.", f"How do you spell {word}?", f"Can you spell the word {word}?"))
    return Item("facts/spell", text, sentence("-".join(word.upper())))


def _not_known(draw: Draw) -> Item:
    asked = draw.allowed(lambda: draw.one(_NOT_KNOWN), lambda made: is_held_out("unknown", made))
    return Item("facts/unknown", asked, NOT_KNOWN)


_KINDS: tuple[Callable[[Draw], Item], ...] = (
    _sum, _sum, _sum, _count, _larger, _spell, _not_known,
    _from_table("opposite", _turned(OPPOSITES), lambda word: (
        f"What is the opposite of {word}?", f"Tell me the opposite of {word}.", f"Which word is the opposite of {word}?"
    )),
    _from_table("colour", list(COLOURS_OF.items()), lambda thing: (
        f"What colour is {_named(thing)}?", f"What color is {_named(thing)}?", f"Which colour has {_named(thing)}?"
    )),
    _from_table("day", _next(DAYS), lambda day: (
        f"Which day comes after {day}?", f"What day is it after {day}?", f"What is the day after {day}?"
    )),
    _from_table("month", _next(MONTHS), lambda month: (
        f"Which month comes after {month}?", f"What is the month after {month}?", f"What month follows {month}?"
    )),
    _from_table("letter", _next(_ALPHABET)[:-1], lambda letter: (
        f"Which letter comes after {letter}?", f"What is the letter after {letter}?", f"What follows {letter}?"
    )),
    _from_table("animal", [(animal, f"it {sound}") for animal, sound in _ANIMALS.items()], lambda animal: (
        f"What does a {animal} do?", f"What sound does a {animal} make?", f"How does a {animal} sound?"
    )),
    _from_table("legs", list(_LEGS.items()), lambda animal: (
        f"How many legs has a {animal}?", f"How many legs does a {animal} have?", f"Count the legs of a {animal}."
    )),
)  # fmt: skip
