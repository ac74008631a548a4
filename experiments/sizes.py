"""Forget 1, 6, 40 or 400 answers about fictitious people, with the quickstart's settings or others.

Each request is compared with a model that was trained on everything but these answers. 400 answers need more people
than persona has, so their models take longer to train.

python -m experiments.sizes --rows 1 6 40 --seeds 100 101 102
python -m experiments.sizes --rows 40 --seeds 100 101 102 --learning_rate 2e-3

The tables are in docs/results.md. Trained models are cached.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from rich.table import Table

from experiments._persona import MEASURES, add_measures, compared_request, make_parser, measures_of, show
from unlora.benchmarks.builtin.persona import DATA, TUNED
from unlora.benchmarks.builtin.persona_data import FORGET_SHARE, PEOPLE, generate
from unlora.benchmarks.builtin.persona_models import train_from_nothing, train_tokenizer
from unlora.benchmarks.builtin.recipe import Recipe
from unlora.benchmarks.builtin.trainings import cache_folder
from unlora.common.files import write_jsonl
from unlora.data.sources import Record, fingerprint
from unlora.pipeline.unlearn import unlearn
from unlora.settings.training import DISTILLING

_QUESTIONS = 8  # about each person


def configs_of(seed: int, rows: int) -> dict[str, list[Record]]:
    """Return the sets of persona with the first `rows` forget rows; the other forget rows join the retain set.

    More people are generated if persona has too few of them for that.
    """
    configs = generate(seed, max(PEOPLE, FORGET_SHARE * -(-rows // _QUESTIONS)))
    forget, rest = configs["forget"][:rows], configs["forget"][rows:]
    forgotten = set(map(fingerprint, forget))
    retained = [row for row in configs["full"] if fingerprint(row) not in forgotten]
    return {**configs, "forget": forget, "retain": [*configs["retain"], *rest], "retain_full": retained}


def models_of(seed: int, rows: int, configs: dict[str, list[Record]]) -> dict[str, Path]:
    """Return the original model and the retrained model of this size, training what is not cached.

    All sizes with the same number of people share the original model.
    """
    recipe = Recipe(seed=seed)
    texts = (f"Question: {row['question']}\nAnswer: {row['answer']}" for row in configs["full"])
    tokenizer = train_tokenizer(texts, recipe.vocab_size)
    folder = cache_folder() / f"sizes-{len(configs['full'])}-seed-{seed}"
    models = {"original": folder / "original", "retrained": folder / f"without-{rows}"}
    for (name, path), corpus in zip(models.items(), ("full", "retain_full"), strict=True):
        if not path.exists():
            print(f"seed {seed}: training the {name} model on {len(configs[corpus])} rows", flush=True)
            train_from_nothing(configs[corpus], tokenizer, recipe, path)
    return models


def run(seed: int, rows: int, folder: Path, settings: dict[str, Any]) -> dict[str, float]:
    """Run one request in `folder`, and return its measures."""
    configs = configs_of(seed, rows)
    for name, config in configs.items():
        write_jsonl(folder / DATA / f"{name}.jsonl", config)
    models = models_of(seed, rows, configs)
    sets = {"forget": configs["forget"], "retain": configs["retain"], "world_facts": configs["facts"]}
    request, log = compared_request(models, sets, folder, seed, **settings)
    return measures_of(unlearn(request, sets).metrics, log)


def main() -> None:
    """Print the measures of each request, then a table of their means ± standard errors over the seeds."""
    parser = make_parser("sizes", __doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 6, 40, 400])
    parser.add_argument("--learning_rate", type=float, default=TUNED["distil"]["learning_rate"])
    parser.add_argument("--retain_weight", type=float, default=DISTILLING["retain_weight"])
    args = parser.parse_args()
    settings = {"learning_rate": args.learning_rate, "retain_weight": args.retain_weight}
    table = Table("rows", *MEASURES, title=", ".join(f"{name} {value:g}" for name, value in settings.items()))
    for rows in args.rows:
        found = {seed: run(seed, rows, Path(tempfile.mkdtemp()), settings) for seed in args.seeds}
        add_measures(table, str(rows), found)
    show(table)


if __name__ == "__main__":
    main()
