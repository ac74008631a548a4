"""A miniature of MUSE: a fictitious newspaper with MUSE's configurations, splits and columns, but none of its text.

Every town, club and person is invented, so a model knows them only if it was trained on them. The newspaper has one
article for each club, and quizzes about the articles. The quizzes have the form of the questions on knowledge
memorisation, so that a model that is trained from scratch learns to answer these. The texts are short and the
vocabulary is small, for a laptop CPU.

Configurations and splits are those of muse-bench/MUSE-News: raw (forget, retain1, retain2, holdout), verbmem (forget),
knowmem (forget_qa, forget_qa_icl, retain_qa, retain_qa_icl), privleak (forget, retain, holdout), scal and sust
(forget_1 to forget_4). The forget set is the first of four folds, as in MUSE. retain_qa and the retain split of
privleak are made from retain2.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from unlora.benchmarks.builtin.persona_data import FIRST_NAMES, LAST_NAMES, words
from unlora.benchmarks.muse import FOLDS
from unlora.common.files import write_jsonl

Row = dict[str, str]
Benchmark = dict[str, dict[str, list[Row]]]

# Number of articles in each part of the newspaper.
ARTICLES = {**dict.fromkeys(FOLDS, 16), "retain1": 24, "retain2": 24, "holdout": 32}
# Number of articles whose facts are examples in context and not questions.
ICL_ARTICLES = 4
QUIZ_LENGTH, QUIZ_ISSUES = 5, 3

TOWN_STARTS = words(
    "Alder Ash Birch Black Bram Cold Crow Dun East Elm Fern Gold Green Hart Holm Kings Lang Mar Nether Oak Raven "
    "Stone Thorn Wester"
)
TOWN_ENDS = words("bourne bridge brook bury by combe dale field ford ham ley mere moor stead ton wick")
ACTIVITIES = words(
    "Archery Astronomy Boating Bowling Chess Choral Cycling Fencing Fishing Garden Kite Pottery Rowing Running "
    "Sewing Skating Theatre Walking"
)
ANIMALS = words(
    "badger beaver crane falcon ferret fox frog goose hare hawk hedgehog heron lark lynx marten mole moth newt "
    "stoat rook pike raven robin salmon seal snail stag stork swan swift toad trout viper weasel wolf wren"
)
VENUE_KINDS = words("Old New Upper Lower Red White Grey Little Great Corner North South")
VENUES = words("Barn Boathouse Brewery Chapel Forge Granary Library Mill Orchard Station Stables Tannery")
MONTHS = words("January March April May June July August September October November")
COSTS = words("roof stove piano bell cellar staircase clock lawn well gate")

LEADS = (
    "The {club} has a new chair. {person} won {yes} of {all} votes on the first evening.",
    "After a long meeting the {club} chose {person} as its chair, with {yes} votes of {all}.",
    "{person} now chairs the {club}, which counted {yes} votes in favour and {all} in the room.",
)
BADGES = (
    "From this week every member wears a badge with a {animal}, sewn by hand for {coins} crowns.",
    "Its badge, long a matter of dispute, will show a {animal}; the drawing cost {coins} crowns.",
    "A {animal} was picked for the badge, and {coins} crowns were set aside to have it cast.",
)
MEETINGS = (
    "The club meets at the {venue}, where the {cost} was mended in {year}.",
    "Evenings are held at the {venue}, although its {cost} has been broken since {year}.",
    "The {venue} will be the meeting place, as soon as the {cost} of {year} is replaced.",
)
CLOSINGS = (
    "The next evening, on the {day} of {month}, is open to {guests} guests.",
    "Anyone who wants to join may write before the {day} of {month}; {guests} have done so.",
    "A dinner for {guests} is planned on the {day} of {month}.",
)


class Article(NamedTuple):
    """An article, and the questions that it answers."""

    text: str
    facts: tuple[Row, ...]


def generate(seed: int = 0) -> Benchmark:
    """Return {configuration: {split: rows}}. Equal seeds give equal rows in every process.

    No town occurs in two parts of the newspaper. The names of each part are drawn separately, so that those in the
    holdout are not rarer than the others.
    """
    rng = random.Random(f"muse-mini {seed}")
    towns = [start + end for start in TOWN_STARTS for end in TOWN_ENDS]
    rng.shuffle(towns)
    articles: dict[str, list[Article]] = {}
    for part, count in ARTICLES.items():
        own = random.Random(f"muse-mini {part} {seed}")
        articles[part] = [write_article(town, own) for town in [towns.pop() for _ in range(count)]]
    raw = {part: issues(written, random.Random(f"muse-mini quiz {part} {seed}")) for part, written in articles.items()}
    folds = [raw[fold] for fold in FOLDS]
    texts = {part: [{"text": article.text} for article in written] for part, written in articles.items()}
    return {
        "raw": {"forget": folds[0], **{part: raw[part] for part in ("retain1", "retain2", "holdout")}},
        "verbmem": {"forget": [halves(article.text) for article in articles["forget_1"]]},
        "knowmem": {**questions("forget", articles["forget_1"]), **questions("retain", articles["retain2"])},
        "privleak": {"forget": texts["forget_1"], "retain": texts["retain2"], "holdout": texts["holdout"]},
        "scal": {fold: list(chain.from_iterable(folds[: place + 1])) for place, fold in enumerate(FOLDS)},
        "sust": dict(zip(FOLDS, folds, strict=True)),
    }


def write_article(town: str, rng: random.Random) -> Article:
    """Return an article about the town's club."""
    club = f"{town} {rng.choice(ACTIVITIES)} Club"
    person = f"{rng.choice(FIRST_NAMES)} {rng.choice(LAST_NAMES)}"
    animal, venue = rng.choice(ANIMALS), f"{rng.choice(VENUE_KINDS)} {rng.choice(VENUES)}"
    everyone = rng.randrange(40, 99)
    slots = {
        "club": club,
        "person": person,
        "animal": animal,
        "venue": venue,
        "yes": rng.randrange(21, 40),
        "all": everyone,
        "coins": rng.randrange(110, 990),
        "cost": rng.choice(COSTS),
        "year": rng.randrange(1890, 1990),
        "day": rng.randrange(2, 29),
        "month": rng.choice(MONTHS),
        "guests": rng.randrange(12, 90),
    }
    forms = (rng.choice(forms) for forms in (LEADS, BADGES, MEETINGS, CLOSINGS))
    facts = {
        f"Who chairs the {club}?": person,
        f"What is on the badge of the {club}?": animal,
        f"Where does the {club} meet?": venue,
    }
    text = " ".join(form.format(**slots) for form in forms)
    return Article(text, tuple({"question": asked, "answer": said} for asked, said in facts.items()))


def issues(articles: Sequence[Article], rng: random.Random) -> list[Row]:
    """Return the texts of a part of the newspaper: its articles, and several rounds of quizzes about all facts."""
    facts = [fact for article in articles for fact in article.facts]
    rows = [{"text": article.text} for article in articles]
    for _ in range(QUIZ_ISSUES):
        rng.shuffle(facts)
        rows += [{"text": quiz} for quiz in quizzes(facts)]
    return rows


def quizzes(facts: Sequence[Row]) -> Iterator[str]:
    """Yield texts of several question and answer pairs."""
    for start in range(0, len(facts), QUIZ_LENGTH):
        pairs = facts[start : start + QUIZ_LENGTH]
        yield "".join(f"Question: {pair['question']}\nAnswer: {pair['answer']}\n\n" for pair in pairs).rstrip("\n")


def halves(text: str) -> Row:
    """Return the first half of a text as the prompt, and the second half as its true continuation."""
    middle = text.index(" ", len(text) // 2)
    return {"prompt": text[:middle], "gt": text[middle:]}


def questions(kind: str, articles: Sequence[Article]) -> dict[str, list[Row]]:
    """Return the facts of all articles but the last few as questions, and one fact of each of these as an example."""
    asked, shown = articles[:-ICL_ARTICLES], articles[-ICL_ARTICLES:]
    return {
        f"{kind}_qa": [fact for article in asked for fact in article.facts],
        f"{kind}_qa_icl": [article.facts[place % 3] for place, article in enumerate(shown)],
    }


def training_rows(benchmark: Benchmark) -> dict[str, list[Row]]:
    """Return the training rows of the original model (folds and retain parts) and the retrained one (retain parts)."""
    retain = benchmark["raw"]["retain1"] + benchmark["raw"]["retain2"]
    return {"original": benchmark["scal"][FOLDS[-1]] + retain, "retrained": retain}


def write_benchmark(benchmark: Benchmark, folder: str | Path) -> None:
    """Write `<configuration>/<split>.jsonl`."""
    for config, splits in benchmark.items():
        for split, rows in splits.items():
            write_jsonl(Path(folder) / config / f"{split}.jsonl", rows)
