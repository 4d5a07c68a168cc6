"""How often the test end to end refuses a right result, and an error how large it finds, simulated.

    python benchmarks/studies/proof/looks.py [--networks 1000000]

Every network amplifies rounding along one direction, as `repconv.proof.pooling` assumes: the error of a call is one
normal number, of the candidate `ratio` times as large as of the original. Calls are added, and looked at, as
`compare_calls` does, starting with two.
"""

from __future__ import annotations

import numpy as np

from repconv.benchmarks.studies.common import asking, head, write_result
from repconv.proof.comparing import OWN_ERROR_FACTOR
from repconv.proof.pooling import F_QUANTILES, FACTOR, MOST_CALLS

SCHEMA = "repconv.proof_looks/1"
RATIOS = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0, 20.0, 50.0, 100.0)
FIRST_CALLS = 2


def refused(ratio: float, networks: int, generator: np.random.Generator) -> int:
    """How many of so many networks are refused, each candidate's true error `ratio` times its original's."""
    shape = (networks, MOST_CALLS)
    got, own = (generator.standard_normal(shape) ** 2 for _ in range(2))
    got *= ratio**2
    is_open = np.ones(networks, bool)
    found = 0
    for calls in range(FIRST_CALLS, MOST_CALLS + 1):
        together = got[:, :calls].sum(1) / own[:, :calls].sum(1)
        doubtful = (got[:, :calls] > OWN_ERROR_FACTOR**2 * own[:, :calls]).any(1)
        wrong = is_open & doubtful & (together > FACTOR**2 * F_QUANTILES[calls - 1])
        found += int(wrong.sum())
        is_open &= doubtful & ~wrong
    return found


def main() -> None:
    """Simulate every ratio."""
    parser = asking(__doc__, "proof_looks")
    parser.add_argument("--networks", type=int, default=1_000_000, help="a ratio (%(default)s)")
    chosen = parser.parse_args()
    generator = np.random.default_rng(0)
    rows = []
    for ratio in RATIOS:
        parts = [100_000] * (chosen.networks // 100_000) + [chosen.networks % 100_000]
        count = sum(refused(ratio, part, generator) for part in parts if part)
        rows.append({"ratio": ratio, "networks": chosen.networks, "refused": count})
        print(f"{ratio:6g} x the original's error: {count / chosen.networks:.2e} refused")
    write_result(chosen.output, {**head(__file__, SCHEMA, f"--networks {chosen.networks}"), "rows": rows})


if __name__ == "__main__":
    main()
