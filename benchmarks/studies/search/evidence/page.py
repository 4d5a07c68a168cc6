"""docs/evidence.md from the kept jobs alone: tables with seeds and intervals, pictures, and what is not done yet.

python benchmarks/studies/search/evidence/page.py [--check]
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from fractions import Fraction

from repconv.benchmarks.studies.common import PICTURES, ROOT, asking, markdown_table, wrapped
from repconv.benchmarks.studies.search.evidence.findings import (
    NONE,
    SIZES,
    Findings,
    OfSeed,
    attainable,
    difference,
    over_seeds,
    said,
)
from repconv.benchmarks.studies.search.evidence.protocol import (
    AGES,
    FIGURE_4,
    RATIOS,
    SCORED,
    SEARCH,
    SEEDS,
    SETS,
    SETS_TRAINING,
    STRATEGIES,
    TRAINING,
    jobs,
    set_name,
)
from repconv.files.whole import write_whole
from repconv.search.reports.chart import chart
from repconv.search.reports.compare import WithInterval

PAGE = ROOT / "docs" / "evidence.md"
PICTURE = PICTURES / "evidence_branches.svg"
JUDGING = round(SEARCH.train_images * SEARCH.validation_share)
"""Images by which a search judges."""


def main() -> None:
    """Write the page, or say whether it is what would be written."""
    parser = asking(__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where something would change")
    findings = Findings()
    files, drawn = {PAGE: page(findings).encode()}, picture(findings)
    if drawn is not None:
        files[PICTURE] = drawn.encode()
    if parser.parse_args().check:
        sys.exit(any(not file.exists() or file.read_bytes() != content for file, content in files.items()))
    write_whole(files)
    print(f"wrote {', '.join(str(file.relative_to(ROOT)) for file in files)}")


def page(findings: Findings) -> str:
    """The whole page."""
    parts = [
        _introduction(findings), _scores(findings), _strategies(findings), _ratios(findings), _ages(findings),
        _branches(findings),
    ]  # fmt: skip
    return wrapped("\n\n".join(parts)) + "\n"


def picture(findings: Findings) -> str | None:
    """Test accuracy over epochs by set of branches, the mean over seeds."""
    lines = [(name, _mean_by_epoch(findings, name)) for name in SETS]
    known = [(name, points) for name, points in lines if points]
    return chart("test accuracy, mean over seeds", "epoch", known) + "\n" if known else None


def _introduction(findings: Findings) -> str:
    every = {job.name: job for job in jobs()}.values()
    done = sum(findings.has(job.name) for job in every)
    machines = [found for job in every if (found := findings.environment_of(job.name))]
    on = dict.fromkeys(f"{one['processor']}, torch {one['versions']['torch']}" for one in machines)
    about = f" on {'; '.join(on)}" if on else ""
    return f"""# What a search is worth: evidence

Small searches and trainings that ask what each part of the method is worth. `make search-evidence` does
those that are left and writes this page; every number stands in a run's folder under `benchmarks/results/evidence/`,
which `repconv search report` and `repconv search compare` read. {done} of {len(every)} are done{about}.

A ResNet of width {SEARCH.width} with three units of ten branches a convolution, CIFAR-10. A search
learns from {SEARCH.train_images - JUDGING:,} images for {SEARCH.epochs} epochs, of which {SEARCH.warmup_epochs} warm
up, in generations of one, with a population of {SEARCH.population}; it judges by {JUDGING:,} others. What is found is
trained from scratch on {TRAINING.train_images:,} images for {TRAINING.epochs} epochs and measured, fused, on 5,000
test images that no search sees.

Values are means over seeds (images, weights and draws differ) with a 95 % interval by Student's t, and the number of
seeds. Differences are over the same seeds. An interval is of one value by itself: of twenty differences that are
none, about one is shown by chance."""


def _scores(findings: Findings) -> str:
    rows = [
        (
            f"of `{supernet}`", "its own" if statistics == "own" else "the supernet's", sizes,
            said(over_seeds(findings.tau(supernet, statistics, numbers)), 1),
        )
        for supernet in SCORED for statistics in ("shared", "own") for sizes, numbers in SIZES.items()
    ]  # fmt: skip
    return f"""## Does the score mean anything?

Kendall's tau between the score of an architecture in a supernet (validation accuracy, fused, with the supernet's batch
statistics or its own) and its test accuracy when trained from scratch, over 24 drawn architectures: of one size (two
thirds of the branches), or of sizes from a sixth to all of them.

{markdown_table(("supernet", "statistics", "architectures", "tau"), rows)}

Chance in training limits what a score can reach: {"; ".join(_limit(findings, name) for name in SIZES)}. That
is the tau of a score which knew the worth of an architecture, its accuracy averaged over trainings, if worth and chance
are normally distributed. Statistics of its own take {said(over_seeds(findings.statistics_share("des")))} % of the time
of measuring a candidate, fused, on {JUDGING:,} images."""


def _limit(findings: Findings, sizes: str) -> str:
    """How far two trainings agree, and what that leaves to a score."""
    found = findings.agreement(SIZES[sizes])
    if found is None:
        return f"of {sizes} {NONE}"
    tau, pairs = found
    return (
        f"of {sizes}, two trainings of the same architectures with different seeds agree by a tau of {tau:.2f} (mean "
        f"of {pairs} {'pair' if pairs == 1 else 'pairs'} of seeds), which leaves a score about {attainable(tau):.2f}"
    )


def _strategies(findings: Findings) -> str:
    gains = {f"`{n}`": difference(findings.top(n, 3), findings.top("random", 3)) for n in STRATEGIES if n != "random"}
    rows = [
        (
            f"`{name}`", said(over_seeds(findings.score(name))), said(over_seeds(findings.top(name, 1))),
            said(over_seeds(findings.top(name, 3))),
            "" if name == "random" else said(gains[f"`{name}`"]),
        )
        for name in STRATEGIES
    ]  # fmt: skip
    heading = ("strategy", "score of the best, %", "best, trained, %", "top 3, trained, %", "top 3 less random's")
    return f"""## Does the strategy?

Every strategy with the same space, budget (two thirds of the branches) and number of weight updates, by its own rules
([search.md](search.md)); the best it found, and the mean of its three best (or its only one), trained.

{markdown_table(heading, rows)}

Top 3 beside random search's{verdict(gains)}"""


def _ratios(findings: Findings) -> str:
    shares = {"des": SEARCH.ratio, **{f"ratio-{name}": value for name, value in RATIOS.items()}}
    names = {name: str(Fraction(shares[name]).limit_denominator(6)) for name in sorted(shares, key=shares.__getitem__)}
    gains = {name: difference(findings.top(name, 1), findings.top("des", 1)) for name in names if name != "des"}
    rows = [
        (
            names[name],
            said(over_seeds(findings.score(name))), said(over_seeds(findings.top(name, 1))),
            "" if name == "des" else said(gains[name]),
        )
        for name in names
    ]  # fmt: skip
    heading = ("share of branches", "score of the best, %", "best, trained, %", "less that of 2/3")
    return f"""## How many branches? (Table 4)

`des` with other budgets.

{markdown_table(heading, rows)}

Trained, beside two thirds of the branches{verdict({names[name]: gain for name, gain in gains.items()})}"""


def _ages(findings: Findings) -> str:
    says = {"des": "usual: in units of the spread, strength 1, two children", **AGES_SAID}
    gains = {name: difference(findings.score(name), findings.score("des")) for name in AGES}
    rows = [
        (
            says[name], said(over_seeds(findings.over_generations(name, "mean_age")), 1),
            said(over_seeds(findings.survivors(name))), said(over_seeds(findings.age_of_best(name)), 1),
            said(over_seeds(findings.score(name))), "" if name == "des" else said(gains[name]),
            said(over_seeds(findings.top(name, 1))),
        )
        for name in ("des", *AGES)
    ]  # fmt: skip
    heading = (
        "age",
        "mean age",
        "parents that live on, %",
        "age of the best",
        "score of the best, %",
        "less the usual's",
        "best, trained, %",
    )
    usual, without = (findings.top(name, FIGURE_4) for name in ("des", "no-age"))
    less = difference(usual, without)
    return f"""## What does age do? (Figure 4)

{markdown_table(heading, rows)}

Ages are counted in generations, from 1 on. Scores, beside the
usual's{verdict({says[name]: gain for name, gain in gains.items()})}

The paper's Figure 4: the mean test accuracy of {FIGURE_4} architectures of each final population, trained.

| | test accuracy, % |
|---|---|
| with the age term | {said(over_seeds(usual))} |
| without | {said(over_seeds(without))} |
| difference | {said(less)} |

Trained, beside none{verdict({"the age term": less})}"""


AGES_SAID: Mapping[str, str] = {
    "no-age": "none",
    "age-published": "as published: in accuracy, one child, gates disturbed by their range",
    "age-half": "strength 0.5",
    "age-double": "strength 2",
    "one-child": "strength 1, one child a parent",
}
"""What each of `AGES` is."""


def _branches(findings: Findings) -> str:
    epochs = [e for e in (1, 2, 4, 6, 9, SETS_TRAINING.epochs) if e <= SETS_TRAINING.epochs]
    rows = [(name, *(said(over_seeds(_accuracy_after(findings, name, e))) for e in epochs)) for name in SETS]
    early, late = (_gains_at(findings, epoch) for epoch in (epochs[1], epochs[-1]))
    drawn = picture(findings) is not None
    return f"""## Do branches help, and for how long?

Networks of fixed sets of branches, and DyRep, which grows and cuts them while it trains, each trained
from scratch for {SETS_TRAINING.epochs} epochs of {SETS_TRAINING.train_images:,} images; test accuracy after so many
epochs, in %. The rate falls to zero at the last.

{markdown_table(("branches", *(f"epoch {e}" for e in epochs)), rows)}

After epoch {epochs[1]}, beside the plain network{verdict(early)} After the last{verdict(late)}
{_PICTURED if drawn else ""}"""


_PICTURED = f"""
![Accuracy over epochs](pictures/{PICTURE.name})"""


def _gains_at(findings: Findings, epoch: int) -> Mapping[str, WithInterval | None]:
    """Accuracy after that epoch less the plain network's, by set of branches."""
    plain = _accuracy_after(findings, "plain", epoch)
    return {name: difference(_accuracy_after(findings, name, epoch), plain) for name in SETS if name != "plain"}


def _accuracy_after(findings: Findings, name: str, epoch: int) -> OfSeed:
    return lambda seed: findings.accuracies(set_name(name), seed).get(epoch)


def _mean_by_epoch(findings: Findings, name: str) -> Sequence[tuple[float, float]]:
    found = [findings.accuracies(set_name(name), seed) for seed in SEEDS]
    known = [one for one in found if one]
    return [(epoch, sum(one[epoch] for one in known) / len(known)) for epoch in known[0]] if known else []


def verdict(gains: Mapping[str, WithInterval | None]) -> str:
    """Which differences are shown, in words: those whose interval does not hold 0."""
    known = {name: gain.interval for name, gain in gains.items() if gain is not None and gain.interval is not None}
    parts = {
        "better": [name for name, (low, _) in known.items() if low > 0],
        "worse": [name for name, (_, high) in known.items() if high < 0],
        "no difference shown": [name for name, (low, high) in known.items() if low <= 0 <= high],
        "too few seeds to tell": [name for name, gain in gains.items() if gain is not None and name not in known],
        NONE: [name for name, gain in gains.items() if gain is None],
    }
    return ": " + "; ".join(f"{what}: {', '.join(names)}" for what, names in parts.items() if names) + "."


if __name__ == "__main__":
    main()
