"""What a row of the zoo says: what is wrong with it, by kind, and what is asked of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import exp, fsum, log
from typing import Any

from repconv import errors

from .measuring import COUNTED, FORMS

Row = Mapping[str, Any]

SLOW_S = 15.0
"""Processor seconds that fusing a graph may take, its export and proof aside."""
SLOWER = 1.02
"""Time of one image, fused over unfused, that an interval must not lie above."""
LARGE, TIMES = 1e-4, 10
"""An error is wrong above both: over the output's root mean square, and times the unfused network's own in float32."""
KINDS = {
    "wrong": "the fused network gives something else",
    "false alarm": "the proof rejects what is right, or cannot tell",
    "crashed": "an error that is none of ours, in fusing or proving",
    "refused": "fusing or proving ended with a reason",
    "stopped": "more time or memory than a network is given",
    "more": "something that is counted rose",
    "norm left": "batch normalisations stay, and why",
    "no reason": "neighbours stay and no reason names them",
    "slow": f"fusing took over {SLOW_S:.0f} s of a processor",
    "slower": f"one image takes longer than {SLOWER} times, the whole interval",
    "not exported": "the exporter does not take the network: nothing of ours ran",
    "own error": "the network in float32 is off by itself, or not finite: errors say little",
}
"""In the order in which they matter."""
OURS = tuple(kind for kind in KINDS if kind not in ("not exported", "own error"))
"""Those that fusing, not an exporter or the network, is to blame for."""
_ALONE = {"no reason": "nothing affine beside it"}
"""What to say of a norm that no reason names: any pair without one is a finding of its own."""
_PRODUCTS = ("convolutions", "linears")
"""Counted together: a product by a constant matrix is one, be it written as a 1x1 convolution or as a linear layer."""
_OURS = {
    name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.RepconvError)
}


def findings(row: Row) -> list[tuple[str, str]]:
    """Kinds of `KINDS`, each with what there is to say."""
    found = [("stopped", row["stopped"])] if "stopped" in row else []
    network = row.get("source", {})
    own = network.get("own_error")
    if network and (not network["finite"] or (own is not None and not own < LARGE)):
        found.append(("own error", f"{own:.0e} of float64" if own is not None and own == own else "not finite"))
    for form in FORMS:
        found += [(kind, f"{form}: {said}") for kind, said in _of_form(row.get(form, {}), own)]
    timed = row.get("latency")
    if timed and timed["interval_95"][0] > SLOWER:
        found.append(("slower", f"{timed['ratio']:.3f} {timed['interval_95']}"))
    return sorted(found, key=lambda each: list(KINDS).index(each[0]))


def _of_form(part: Row, own: float | None) -> Iterator[tuple[str, str]]:
    if "failure" in part:
        failure = part["failure"]
        yield _ended(failure), f"{failure['step']}: {failure['kind']}: {failure['said']}"
    is_wrong = off(part, own)
    if is_wrong:
        yield "wrong", f"{part['error']:.1e}, unfused {_own(part, own):.1e}"
    if "prove" in part and not part["prove"]["passed"] and not is_wrong:
        yield "false alarm", part["prove"]["verdict"]
    if "after" in part:
        before, after = part["before"], part["after"]
        rose = [f"{what} {was} to {now}" for what, was, now in _counts(before, after) if now > was]
        if rose:
            yield "more", ", ".join(rose)
        if after["batch_norms"]:
            why = ", ".join(f"{n} ({_ALONE.get(kinds, kinds)})" for kinds, n in part.get("norms_stay", {}).items())
            yield "norm left", f"{after['batch_norms']} of {before['batch_norms']}{why and ': '}{why}"
        if part["unexplained"]:
            yield "no reason", f"{part['unexplained']} pairs"
        if part["fuse"]["cpu_s"] > SLOW_S:
            yield "slow", f"{part['fuse']['cpu_s']:.0f} s"


def _counts(before: Row, after: Row) -> Iterator[tuple[str, int, int]]:
    """What is counted, before and after."""
    for what, keys in (("products", _PRODUCTS), *((key, (key,)) for key in COUNTED if key not in _PRODUCTS)):
        was, now = (sum(part[key] or 0 for key in keys) for part in (before, after))
        yield what, was, now


def _ended(failure: Row) -> str:
    if failure["kind"] == "MemoryError" or "allocate memory" in failure["said"]:
        return "stopped"
    return "not exported" if failure["step"] == "export" else "refused" if failure["kind"] in _OURS else "crashed"


def off(part: Row, own: float | None) -> bool:
    """Whether the fused network's error is more than rounding may be."""
    error, before = part.get("error"), _own(part, own)
    return error is not None and before is not None and not error <= max(LARGE, TIMES * before)


def _own(part: Row, own: float | None) -> Any:  # noqa: ANN401  # a number or None
    return part.get("own_error", own)


def by_kind(rows: Iterable[Row]) -> dict[str, list[tuple[str, str]]]:
    """Networks with what there is to say of them, by kind, in the order of `KINDS`."""
    found: dict[str, list[tuple[str, str]]] = {kind: [] for kind in KINDS}
    for row in rows:
        for kind, said in findings(row):
            found[kind].append((row["network"], said))
    return found


def is_done(row: Row) -> bool:
    """Whether at least one form of it was fused and proved."""
    return any("prove" in row.get(form, {}) for form in FORMS)


def speed_up(rows: Sequence[Row]) -> float | None:
    """The geometric mean of unfused over fused, of those that were timed."""
    logs = [-log(row["latency"]["ratio"]) for row in rows if "latency" in row]
    return exp(fsum(logs) / len(logs)) if logs else None


def reasons(rows: Iterable[Row], form: str) -> list[tuple[str, int, int, str]]:
    """Kinds of reasons, most frequent first: how often, in how many networks, and in which most."""
    often: Counter[str] = Counter()
    networks: dict[str, Counter[str]] = {}
    for row in rows:
        for kind, count in row.get(form, {}).get("reasons", {}).items():
            often[kind] += count
            networks.setdefault(kind, Counter())[row["network"]] += count
    return [
        (kind, count, len(networks[kind]), networks[kind].most_common(1)[0][0]) for kind, count in often.most_common()
    ]
