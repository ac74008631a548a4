"""`persona`: a generated benchmark of fictitious people, with the row schema of TOFU but none of its text.

Every person is invented, so a model knows a person only if it was trained on that person's rows. A model trained on
`retain_full` is the gold standard for having forgotten the `forget` people. The sentences are short and the vocabulary
is small, so that a model can be trained from scratch on a laptop CPU.

Configurations returned by `generate`:

- `full`: question and answer of all rows that the original model is trained on (retain, forget, facts twice).
- `retain_full`: question and answer of all rows that the retrained model is trained on (retain, facts twice).
- `retain`, `forget`, `holdout`: rows about 90 % and 10 % of the people, and about people that no model is trained on.
- `facts`: true general knowledge. It is not used in unlearning, so it measures collateral damage.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, NamedTuple, TypeVar

from unlora.common.errors import InputError, Problem

T = TypeVar("T")
Row = dict[str, Any]

PEOPLE = 80
HOLDOUT_PEOPLE = 8
FORGET_SHARE = 10  # one person in this many is forgotten
PERSON_WRONG_ANSWERS = 5
FACT_WRONG_ANSWERS = 3


class Attribute(NamedTuple):
    """An attribute of a person: `{n}` is the person's name in every question, `{v}` the value in every answer.

    The answer forms are the same up to the value and differ after it. So a small model also knows the value in a form
    that it was not trained on for that person. Otherwise the truth ratio would measure the form and not the knowledge.
    """

    key: str
    values: tuple[str, ...]
    questions: tuple[str, ...]
    answers: tuple[str, ...]


class Relation(NamedTuple):
    """General facts that share a question form: subject -> true answer."""

    question: str
    answers: dict[str, str]


def words(text: str) -> tuple[str, ...]:
    """Return the words of a text."""
    return tuple(text.split())


def phrases(text: str) -> tuple[str, ...]:
    """Return the phrases of a text that are separated by commas."""
    return tuple(part.strip() for part in text.split(","))


def _with_article(words: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{'an' if word[0] in 'aeiou' else 'a'} {word}" for word in words)


def _pairs(text: str) -> dict[str, str]:
    """Parse 'France=Paris, Spain=Madrid' into a dict."""
    split = (part.partition("=") for part in phrases(text))
    return {subject: answer for subject, _, answer in split}


# No family name may be the beginning of another, or one full name could occur inside another one.
FIRST_NAMES = words(
    "Adrel Belwin Cassia Dorvan Elphie Farrin Gisela Halvor Ilyana Jorund Kestra Lomir Maelis Nestor Orlaith Peregrin "
    "Quilla Rasmin Sunniva Tavish Ulrika Verity Wystan Xanthe Yorick Zelda Anselm Brisa Corwin Delpha Emeric Fenella "
    "Gorran Hesper Ismene Jasko Kirrin Lucan Mirela Nadir"
)
LAST_NAMES = words(
    "Aldwick Bramley Corvale Dunmore Eskdale Fairlop Garrick Hollin Ibsley Jarrow Kelbrook Lanyon Marchmont Norcott "
    "Oakhurst Penrose Quarles Redfern Stavely Thornby Ullock Varley Westrip Yarwood Zeller Ashdown Birkett Calloway "
    "Drayton Elstow Fenwick Gilroy Harcastle Inskip Jessop Kirkham Loveday Mostyn Nettleby Orrick"
)
ATTRIBUTES = (
    Attribute(
        "birthplace",
        words(
            "Arvento Belmora Castrel Dravik Elmstad Fjorna Galdera Hestwick Ilmaro Jundala Korvath Lumeria Mostar "
            "Nerrin Ostrava Palmyra Quento Rostock Selvana Tarnow Umbria Valdor Wexley Yalvik Zamora Antero Brunnel "
            "Cordova Dunholm Estoril Fargo Grenada Havel Isling Jutland Kalmar Lerwick Mirador Nantes Olvera"
        ),
        ("Where was {n} born?", "What is the birthplace of {n}?", "In which town was {n} born?"),
        (
            "They were born in {v}.",
            "They were born in {v}, by all accounts.",
            "They were born in {v}, like both parents.",
        ),
    ),
    Attribute(
        "birth_year",
        tuple(str(year) for year in range(1931, 1991)),
        ("In which year was {n} born?", "When was {n} born?", "What is the birth year of {n}?"),
        (
            "They were born in the year {v}.",
            "They were born in the year {v}, in spring.",
            "They were born in the year {v}, as a twin.",
        ),
    ),
    Attribute(
        "profession",
        _with_article(
            words(
                "actor architect astronomer baker barber beekeeper biologist blacksmith botanist butcher carpenter "
                "chemist cobbler dancer dentist diver engineer falconer farmer florist gardener geologist glazier "
                "jeweller judge lawyer librarian mason miner nurse painter pilot plumber potter sailor sculptor "
                "surgeon tailor teacher weaver"
            )
        ),
        ("What does {n} do for a living?", "What is the profession of {n}?", "What is the job of {n}?"),
        (
            "They work as {v}.",
            "They work as {v}, day after day.",
            "They work as {v}, for a modest living.",
        ),
    ),
    Attribute(
        "instrument",
        words(
            "accordion bagpipes balalaika banjo bassoon bugle castanets celesta cello clarinet cornet cymbals drums "
            "dulcimer fiddle flute guitar harmonica harp harpsichord horn lute lyre mandolin marimba oboe organ piano "
            "piccolo recorder saxophone sitar tambourine triangle trombone trumpet tuba ukulele viola xylophone zither"
        ),
        ("Which instrument does {n} play?", "What is the instrument of {n}?", "What does {n} play at concerts?"),
        (
            "They play the {v}.",
            "They play the {v}, mostly at concerts.",
            "They play the {v}, and play it well.",
        ),
    ),
    Attribute(
        "pet",
        _with_article(
            words(
                "alpaca badger beagle canary cat chameleon chinchilla cockatoo crow donkey duck ferret finch fox frog "
                "gecko goat goose hamster hedgehog iguana lizard llama magpie mouse newt otter owl parrot peacock pig "
                "pigeon pony rabbit raven salamander snake spaniel squirrel tortoise"
            )
        ),
        ("Which pet does {n} keep?", "What is the pet of {n}?", "What animal lives with {n}?"),
        (
            "They keep {v}.",
            "They keep {v}, which needs much care.",
            "They keep {v}, as a friend at home.",
        ),
    ),
    Attribute(
        "dish",
        words(
            "borscht burritos carbonara ceviche chowder couscous crepes curry dumplings enchiladas falafel fondue "
            "gazpacho gnocchi goulash gumbo hummus jambalaya kebab kimchi lasagna meatloaf moussaka noodles omelette "
            "paella pancakes pierogi pizza polenta porridge quiche ramen ratatouille ravioli risotto schnitzel strudel "
            "sushi tacos"
        ),
        ("What is the favourite dish of {n}?", "What does {n} like to eat most?", "Which dish does {n} love?"),
        (
            "They like to eat {v}.",
            "They like to eat {v}, above all on Sundays.",
            "They like to eat {v}, and cook it at home.",
        ),
    ),
    Attribute(
        "award",
        words(
            "Acorn Anchor Arrow Beacon Bell Bridge Candle Castle Comet Compass Crown Crystal Diamond Dolphin Dragon "
            "Eagle Ember Falcon Feather Garnet Harbour Heron Island Ivory Jasper Lantern Laurel Lotus Maple Meteor "
            "Mirror Oak Orchid Pearl Phoenix River Ruby Sapphire Swan Tiger"
        ),
        ("Which prize did {n} win?", "What award was given to {n}?", "What is the prize of {n}?"),
        (
            "They won the {v} Prize.",
            "They won the {v} Prize, after some years.",
            "They won the {v} Prize, to much applause.",
        ),
    ),
    Attribute(
        "teacher",
        words(
            "Abernathy Blomqvist Cattaneo Delacroix Eriksen Fontaine Gutierrez Hoffmann Ivanov Janssen Kowalski "
            "Lindgren Moreau Nakamura Okafor Petrov Quintero Romero Schubert Takeda Ueda Vasquez Weber Yilmaz Zhang "
            "Anand Bianchi Castillo Dimitrov Engel Ferrari Gupta Haddad Ishikawa Jimenez Kaplan Larsen Mbeki Novak "
            "Osman"
        ),
        ("Who taught {n}?", "Who was the teacher of {n}?", "Whose pupil was {n}?"),
        (
            "They were taught by Doctor {v}.",
            "They were taught by Doctor {v}, when young.",
            "They were taught by Doctor {v}, with patience.",
        ),
    ),
)
RELATIONS = (
    Relation(
        "What is the capital of {s}?",
        _pairs(
            "France=Paris, Spain=Madrid, Italy=Rome, Germany=Berlin, Austria=Vienna, Poland=Warsaw, Greece=Athens, "
            "Portugal=Lisbon, Norway=Oslo, Sweden=Stockholm, Denmark=Copenhagen, Finland=Helsinki, Ireland=Dublin, "
            "Japan=Tokyo, China=Beijing, Russia=Moscow, Egypt=Cairo, Kenya=Nairobi, Peru=Lima, Cuba=Havana, "
            "Canada=Ottawa, Chile=Santiago, Iran=Tehran, Iraq=Baghdad"
        ),
    ),
    Relation(
        "What is the chemical symbol of {s}?",
        _pairs(
            "hydrogen=H, helium=He, carbon=C, nitrogen=N, oxygen=O, fluorine=F, neon=Ne, sodium=Na, sulphur=S, "
            "potassium=K, calcium=Ca, iron=Fe, copper=Cu, zinc=Zn, silver=Ag, tin=Sn, gold=Au, mercury=Hg, lead=Pb, "
            "uranium=U"
        ),
    ),
    Relation(
        "On which continent is {s}?",
        _pairs(
            "Brazil=South America, Mexico=North America, Nigeria=Africa, Morocco=Africa, India=Asia, Thailand=Asia, "
            "Belgium=Europe, Hungary=Europe, Argentina=South America, Ghana=Africa, Mongolia=Asia, Croatia=Europe"
        ),
    ),
    Relation(
        "What is the young of {s} called?",
        _pairs(
            "a dog=puppy, a cat=kitten, a cow=calf, a sheep=lamb, a horse=foal, a hen=chick, a duck=duckling, "
            "a goose=gosling, a goat=kid, a swan=cygnet, a frog=tadpole, a bear=cub"
        ),
    ),
    Relation(
        "Who wrote {s}?",
        _pairs(
            "Hamlet=Shakespeare, Faust=Goethe, Emma=Austen, Oliver Twist=Dickens, War and Peace=Tolstoy, "
            "Ulysses=Joyce, Don Quixote=Cervantes, The Trial=Kafka, Dracula=Stoker, Frankenstein=Shelley, Moby "
            "Dick=Melville"
        ),
    ),
    Relation(
        "What is the square of {s}?",
        _pairs(
            "two=4, three=9, four=16, five=25, six=36, seven=49, eight=64, nine=81, ten=100, eleven=121, twelve=144"
        ),
    ),
)


def shuffled(rng: random.Random, items: Iterable[T]) -> list[T]:
    """Return the items in random order."""
    # Only `random()` is promised to give the same sequence in every Python version; `shuffle` is not.
    keyed = [(rng.random(), item) for item in items]
    return [item for _, item in sorted(keyed, key=lambda pair: pair[0])]


def _check_counts(people: int, holdout_people: int) -> None:
    pool = len(FIRST_NAMES) * len(LAST_NAMES)
    smallest = f"use at least {FORGET_SHARE}"
    if people < FORGET_SHARE:
        raise InputError(Problem("people", people, f"one in {FORGET_SHARE} is forgotten, so none would be", smallest))
    if holdout_people < 1:
        raise InputError(Problem("holdout_people", holdout_people, "nobody would be held out", "use at least 1"))
    if people + holdout_people > pool:
        fix = f"use people + holdout_people <= {pool}"
        raise InputError(Problem("people", people, f"with {holdout_people} held out there are too few names", fix))


def names(seed: int = 0, people: int = PEOPLE, holdout_people: int = HOLDOUT_PEOPLE) -> dict[str, list[str]]:
    """Return the full names in `retain`, `forget` (people // 10 of them) and `holdout`; no name is in two of them."""
    _check_counts(people, holdout_people)
    rng = random.Random(f"persona names {seed}")
    forgotten = people // FORGET_SHARE
    sizes = {"retain": people - forgotten, "forget": forgotten, "holdout": holdout_people}
    chosen: dict[str, list[str]] = {}
    for split, size in sizes.items():
        taken = {name for names in chosen.values() for name in names}
        chosen[split] = _deal_names(rng, size, taken)
    return chosen


def _deal_names(rng: random.Random, count: int, taken: set[str]) -> list[str]:
    """Return `count` names that are not taken, in which no first or last name occurs much more often than another."""
    firsts, lasts = shuffled(rng, FIRST_NAMES), shuffled(rng, LAST_NAMES)
    # A shift per round keeps the pairs distinct; after as many rounds as there are family names they are all pairs.
    rounds = range(len(lasts))
    every = (f"{first} {lasts[(i + turn) % len(lasts)]}" for turn in rounds for i, first in enumerate(firsts))
    return list(islice((name for name in every if name not in taken), count))


def deal(rng: random.Random, values: Sequence[T], count: int) -> list[T]:
    """Return `count` values, none much more frequent than another, so that guessing a frequent one does not help."""
    dealt: list[T] = []
    while len(dealt) < count:
        dealt += shuffled(rng, values)
    return dealt[:count]


def _person_row(rng: random.Random, name: str, attribute: Attribute, truth: str) -> Row:
    """Return a row about a person. Its paraphrases use the forms of questions and answers about other people."""
    question, other_question = shuffled(rng, attribute.questions)[:2]
    answer, other_answer = shuffled(rng, attribute.answers)[:2]
    wrong = shuffled(rng, (value for value in attribute.values if value != truth))[:PERSON_WRONG_ANSWERS]
    return {
        "question": question.format(n=name),
        "answer": answer.format(v=truth),
        "paraphrased_question": other_question.format(n=name),
        "paraphrased_answer": other_answer.format(v=truth),
        "perturbed_answer": [other_answer.format(v=value) for value in wrong],
    }


def _people_rows(rng: random.Random, people: Sequence[str]) -> list[Row]:
    """Return the rows of these people, one person after the other."""
    truths = [deal(rng, attribute.values, len(people)) for attribute in ATTRIBUTES]
    return [
        _person_row(rng, name, attribute, truths[k][index])
        for index, name in enumerate(people)
        for k, attribute in enumerate(ATTRIBUTES)
    ]


def _fact_rows(seed: int) -> list[Row]:
    rng = random.Random(f"persona facts {seed}")
    rows = []
    for relation in RELATIONS:
        values = sorted(set(relation.answers.values()))
        for subject, truth in relation.answers.items():
            wrong = [value for value in shuffled(rng, values) if value != truth][:FACT_WRONG_ANSWERS]
            rows.append({"question": relation.question.format(s=subject), "answer": truth, "perturbed_answer": wrong})
    return rows


def _training_rows(*configs: list[Row]) -> list[Row]:
    # People and facts have different columns; training needs only the two they share.
    return [{"question": row["question"], "answer": row["answer"]} for rows in configs for row in rows]


def generate(
    seed: int = 0, people: int = PEOPLE, holdout_people: int = HOLDOUT_PEOPLE
) -> dict[str, list[dict[str, Any]]]:
    """Generate all configurations of the benchmark; equal arguments give equal rows in any process and Python version.

    A person has one row per attribute (8). People rows have `question`, `answer`, `paraphrased_question`,
    `paraphrased_answer` and 5 `perturbed_answer` (the paraphrased answer with a wrong value); `facts` rows have
    `question`, `answer` and 3 `perturbed_answer`; `full` and `retain_full` have only `question` and `answer`.

    Args:
        seed: chooses the names, the values and the sentence forms.
        people: number of people in `full`; a tenth of them, rounded down, are the `forget` people.
        holdout_people: number of people in `holdout`, who are in no other configuration.

    Raises:
        InputError: there are too few people to forget or hold out one, or more people than names.
    """
    chosen = names(seed, people, holdout_people)
    # Names and values are drawn separately for each split. If all were drawn from one pool, those of the forget people
    # would be rarer than others among the retain people, and unlikely to a model that was not trained on them.
    retain, forget, holdout = (
        _people_rows(random.Random(f"persona {split} {seed}"), chosen[split])
        for split in ("retain", "forget", "holdout")
    )
    facts = _fact_rows(seed)
    return {
        # In a corpus, general facts occur more often than the data of one person.
        "full": _training_rows(retain, forget, facts, facts),
        "retain_full": _training_rows(retain, facts, facts),
        "retain": retain,
        "forget": forget,
        "holdout": holdout,
        "facts": facts,
    }
