"""What of the paper's searches was done scaled down: Table 4, Figure 4, and the methods it is compared with."""

from __future__ import annotations

from ..studies.common import markdown_table, wrapped
from ..studies.search.evidence.findings import Findings, OfSeed, difference, over_seeds, said
from ..studies.search.evidence.protocol import FIGURE_4, SEARCH, SETS_TRAINING, TRAINING, of_ratio, set_name
from .published.tables import IMPOSSIBLE, RATIOS, SCALED, SEARCHED, TABLE_2, TABLE_3, TABLE_4


def searches(findings: Findings) -> str:
    """The page's section."""
    return wrapped(f"""## Searches: Table 4, Figure 4, and other methods

At the paper's scale {IMPOSSIBLE}: each cell of Table 4 is a search of 500 epochs and a training of 600, and Figure 4 is
thirty such trainings with the age function and thirty without. Scaled down: a ResNet of width {SEARCH.width} and three
units, searches of {SEARCH.epochs} epochs, what they find trained for {TRAINING.epochs} on
{TRAINING.train_images:,} images of CIFAR-10; mean top-1 of 5,000 test images, its 95 % interval and the number of
seeds. [evidence.md](evidence.md) has more of it, and the files it comes from; `make search-evidence` does it.

### Table 4: shares of branches

{_table_4(findings)}

### Figure 4: the age function

{_figure_4(findings)}

### Other methods' searches

By their own rules in this space of parallel branches, at equal weight updates; the paper compares networks of cells, as
their authors published them. The best architecture each found, trained, and how much better that is than random
search's.

{_methods(findings)}""")


def _table_4(findings: Findings) -> str:
    rows = [(f"{name}, paper", *(f"{value:.2f}" for value in values), "") for name, values in TABLE_4.items()]
    here = [said(over_seeds(findings.top(of_ratio(ratio), 1))) for ratio in RATIOS]
    return markdown_table(("top-1, %", *RATIOS, "verdict"), [*rows, ("here", *here, SCALED)])


def _figure_4(findings: Findings) -> str:
    usual, without = (findings.top(name, FIGURE_4) for name in ("des", "no-age"))
    return f"""{FIGURE_4} architectures of every final population, trained: {said(over_seeds(usual))} with the age term,
{said(over_seeds(without))} without; with less without {said(difference(usual, without))}. {SCALED.capitalize()}."""


def _methods(findings: Findings) -> str:
    random = findings.top("random", 1)

    def row(name: str, paper: str, ours: str, found: OfSeed, beside: OfSeed) -> tuple[str, ...]:
        return name, paper, ours, said(over_seeds(found)), said(difference(found, beside)), SCALED

    rows = [
        row(r.name, f"{r.top1:.2f}, CIFAR-10", f"`{SEARCHED[r.name]}`", findings.top(SEARCHED[r.name], 1), random)
        for r in TABLE_2
        if r.name in SEARCHED
    ]
    dyrep = next(r for r in TABLE_3 if r.name == "DyRep")
    grown, plain = (findings.at_last(set_name(name)) for name in ("DyRep", "plain"))
    of_dyrep = f"`retrain --set grow_epochs=1`, {SETS_TRAINING.epochs} epochs; beside the plain network"
    rows.append(row(dyrep.name, f"{dyrep.top1:.2f}, ImageNet", of_dyrep, grown, plain))
    return markdown_table(
        ("method", "paper's top-1, %", "here", "top-1, %", "less random's best, points", "verdict"), rows
    )
