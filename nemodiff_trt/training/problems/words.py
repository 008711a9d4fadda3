"""Word lists of the generators, and invented words."""

from __future__ import annotations

import random

NAMES = tuple(
    "Ada Ben Cleo Dan Eva Finn Gus Hana Ivo June Kai Lena Mia Noah Ola Pia Quin Rosa Sam Tara Uma Vic Wes Yara Zoe".split()
)
THINGS = tuple(
    "apples books coins cards shells stamps pens keys cups stones seeds plums nuts beads eggs pears bolts maps hats "
    "rings".split()
)
CITIES = tuple("Oslo Rome Lima Cairo Paris Quito Delhi Kyoto Berlin Dublin Lagos Perth Turin Bergen Malaga Havana".split())
NOUNS = tuple(
    "river lamp stone cloud tree bird road house fish star wind door field snow ship bridge garden clock horse candle "
    "forest window mirror island basket ladder pocket hammer kettle barrel".split()
)
ADJECTIVES = tuple("red old small quiet green warm tall blue bright slow dark round cold soft wild early heavy narrow".split())
VERBS = tuple("sees finds takes paints keeps moves opens follows holds brings".split())
JOBS = tuple("baker nurse pilot farmer tailor painter teacher sailor miner singer".split())
_ONSETS = tuple("b d f g k l m n p r s t v z".split())
_VOWELS = tuple("a e i o u".split())
_CODAS = ("", "", "n", "r", "l", "k", "s")


def invented_word(rng: random.Random) -> str:
    """A pronounceable word of two syllables that no language list holds, such as `zorvik`."""
    return "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(2))


def distinct(rng: random.Random, count: int) -> list[str]:
    """`count` different invented words."""
    words: dict[str, None] = {}
    while len(words) < count:
        words[invented_word(rng)] = None
    return list(words)


def phrase(rng: random.Random, num_words: int) -> str:
    """Words that mean nothing together, so that only the prompt tells what comes next."""
    return " ".join(rng.choice(rng.choice((NOUNS, ADJECTIVES, VERBS))) for _ in range(num_words))
