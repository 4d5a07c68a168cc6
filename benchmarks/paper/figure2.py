"""Figure 2 of the paper: the age function of equation (14) at a = 10, mu = 0.1 and eta = 0.05.

    python benchmarks/paper/figure2.py

Drawn from `repconv.search.strategies.evolution.age_term`, what a search itself uses, between 1 and a (the paper's
red part, which
is what it regularises with).
"""

from __future__ import annotations

from pathlib import Path

from repconv.benchmarks.paper.published.tables import FAITHFUL
from repconv.benchmarks.studies.common import PICTURES, asking, head, write_result
from repconv.files.whole import write_whole
from repconv.search.reports.chart import chart
from repconv.search.strategies.evolution import age_term

SCHEMA = "repconv.paper.figure2/1"
SETTINGS = {"scale": 0.05, "limit": 10.0, "offset": 0.1}


def points() -> list[tuple[float, float]]:
    """Ages from 1 in tenths until just before the limit, and the term at each."""
    ages = [tenth / 10 for tenth in range(10, 100)]
    return [(age, age_term(age, **SETTINGS)) for age in ages]


def main() -> None:
    """Draw, write the picture and JSON."""
    parser = asking(__doc__, "paper_figure2")
    parser.add_argument("--pictures", type=Path, default=PICTURES, help="folder (%(default)s)")
    arguments = parser.parse_args()
    arguments.pictures.mkdir(parents=True, exist_ok=True)
    drawn = points()
    picture = chart("age term, a = 10, mu = 0.1, eta = 0.05", "age in generations", [("equation (14)", drawn)])
    write_whole({arguments.pictures / "figure2.svg": f"{picture}\n".encode()})
    write_result(
        arguments.output,
        {
            **head(__file__, SCHEMA),
            "settings": SETTINGS,
            "verdict": FAITHFUL,
            "picture": "figure2.svg",
            "points": drawn,
        },
    )
    print(f"{len(drawn)} points, from {drawn[0][1]:.4f} at age 1 to {drawn[-1][1]:.4f} at {drawn[-1][0]}")


if __name__ == "__main__":
    main()
