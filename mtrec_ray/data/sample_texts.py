"""The words and phrases that the texts of the sample world are made of."""

from dataclasses import dataclass

import numpy as np

# Words of a topic overlap in meaning, not in spelling: an encoder must know that a comet and an
# orbit belong together.
TOPIC_WORDS: dict[str, tuple[str, ...]] = {
    "cooking": (
        "cooking", "recipe", "kitchen", "baking", "pasta", "chef", "spice", "soup", "pastry",
        "roast", "dessert", "seasoning", "frying pan", "cuisine", "dough", "sauce",
    ),
    "outdoors": (
        "camping", "hiking", "tent", "mountain trail", "backpacking", "campfire", "wilderness",
        "climbing", "sleeping bag", "kayak", "summit", "trekking", "forest walk", "canyon",
    ),
    "space": (
        "space", "astronaut", "telescope", "galaxy", "rocket", "planet", "orbit", "comet",
        "astronomy", "Mars", "lunar", "satellite", "asteroid", "nebula", "spacecraft",
    ),
    "music": (
        "music", "guitar", "orchestra", "jazz", "piano", "concert", "melody", "drummer", "violin",
        "songwriter", "album", "choir", "symphony", "singer", "rhythm",
    ),
    "football": (
        "football", "goalkeeper", "striker", "penalty kick", "league match", "midfielder",
        "World Cup", "stadium", "dribbling", "soccer", "referee", "free kick", "defender",
        "offside", "football club",
    ),
    "gardening": (
        "gardening", "roses", "seedling", "compost", "greenhouse", "pruning", "flower bed",
        "tomato plant", "lawn", "orchard", "tulips", "watering can", "hedge", "potting soil",
    ),
    "history": (
        "history", "medieval", "Roman empire", "castle", "ancient Egypt", "archaeology", "knight",
        "dynasty", "pharaoh", "Viking", "revolution", "monastery", "crusade", "Renaissance",
    ),
    "computing": (
        "computing", "laptop", "programming", "software", "keyboard", "processor", "algorithm",
        "coding", "robotics", "circuit board", "database", "open source", "compiler", "server",
    ),
}  # fmt: skip


TOPICS = tuple(TOPIC_WORDS)


@dataclass(frozen=True)
class Phrases:
    """Templates of a scenario's titles and descriptions, and its kinds of items.

    A text names three words of its topic: {a} and {b} in the title or the description, {c} in the
    description, where a word of a second topic may take its place. {kind} is no topic.
    """

    titles: tuple[str, ...]
    descriptions: tuple[str, ...]
    kinds: tuple[str, ...]


SHOP = Phrases(
    titles=(
        "{kind} {a} set",
        "{a} gift box, {kind}",
        "{kind} {a} poster",
        "The {kind} book of {a}",
        "{a} and {b} puzzle",
        "{kind} {a} starter kit",
    ),
    descriptions=(
        "Made for everyone who loves {b}. Goes well with {c}.",
        "Inspired by {b} and {c}, packed by hand.",
        "A present for friends of {b}, with a touch of {c}.",
    ),
    kinds=("sturdy", "classic", "compact", "premium", "everyday", "handmade", "travel-size"),
)


NEWS = Phrases(
    titles=(
        "{kind}: what {a} tells us today",
        "{kind}: a new look at {a} and {b}",
        "{kind}: the year of {a}",
        "{kind}: why people talk about {a}",
        "{kind}: {a} in the spotlight",
    ),
    descriptions=(
        "Our reporter asked experts about {b} and {c}.",
        "How {b} changed, and what it means for {c}.",
        "A story of {b}, {c} and the people behind it.",
    ),
    kinds=("Report", "Opinion", "Interview", "Analysis", "Briefing", "Feature"),
)


VIDEO = Phrases(
    titles=(
        "The last {a}",
        "Beyond {a}",
        "A night of {a} and {b}",
        "{a}: the untold story",
        "My life with {a}",
        "Return to {a}",
    ),
    descriptions=(
        "A {kind} about {b} and {c}.",
        "This {kind} follows a family between {b} and {c}.",
        "Two strangers meet over {b} in a {kind} full of {c}.",
    ),
    kinds=("drama", "comedy", "documentary", "thriller", "romance", "animation", "mystery"),
)


BRANDS = ("Alder", "Brightway", "Corvo", "Dunmore", "Elmira", "Fenwick", "Granite", "Hollis")


def item_text(
    rng: np.random.Generator, phrases: Phrases, topic: int, second: int, kind: str
) -> tuple[str, str]:
    """Returns title and description, with three words of the topic or two and one of the second."""
    a, b, c = rng.choice(TOPIC_WORDS[TOPICS[topic]], size=3, replace=False)
    if second != topic:
        c = rng.choice(TOPIC_WORDS[TOPICS[second]])
    texts = (
        str(rng.choice(templates)).format(a=a, b=b, c=c, kind=kind)
        for templates in (phrases.titles, phrases.descriptions)
    )
    title, description = (text[:1].upper() + text[1:] for text in texts)
    return title, description
