"""docs/paper.md from the JSON files alone: the paper's tables and figures beside what was measured here.

python benchmarks/paper/document.py [--check]
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from repconv.benchmarks.paper.inference_tables import inference_tables
from repconv.benchmarks.paper.published.tables import IMPOSSIBLE, SCALED
from repconv.benchmarks.paper.searches import searches
from repconv.benchmarks.studies.common import RESULTS, ROOT, asking, command_of, markdown_table
from repconv.benchmarks.studies.search.evidence.findings import Findings
from repconv.files.whole import write_whole

PAGE = ROOT / "docs" / "paper.md"
FILES = (
    "table1", "paper_inference", "paper_architectures", "paper_figure2", "train_cifar10", "sampled_accuracy",
)  # fmt: skip
"""What the page is made of, under `benchmarks/results/`."""

WHERE_TRAINED = ("paper_figure3", "train_cifar10_plain")
"""What needs the plain network of `train_cifar10.py --network resnet18`; the page says so where there is none."""


def page(results: Mapping[str, Any]) -> str:
    """The whole page, from the content of `FILES` by name."""
    parts = [
        _introduction(results), _table_1(results["table1"]), inference_tables(results["paper_inference"]),
        _parameters(results["paper_inference"]), _accuracy(results), searches(Findings()), _figures(results),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _introduction(results: Mapping[str, Any]) -> str:
    taken = results["paper_inference"]["environment"]
    versions = taken["versions"]
    return f"""# The paper's tables and figures

What De-IReps prints, beside what was measured here. `make paper` measures and writes this page; every number of ours
comes from a file under `benchmarks/results/`, which names its command.

* **faithful**: networks, sizes, batch and precision are the paper's, on another machine;
* **scaled down**: the same thing, smaller, or with a part the paper does not publish chosen here;
* **not possible here**: not done, and why.

Measured on {taken["cores"]} cores of an {taken["processor"]}, torch {versions["torch"]}, onnxruntime
{versions["onnxruntime"]}; the paper's machine is an A100. Milliseconds of the two do not compare; ratios do, as far as
the machines are alike."""


def _table_1(content: Mapping[str, Any]) -> str:
    rows, batch = [], content["results"][0]["batch"]
    reason = f"batch {batch} for 512"
    for found in content["results"]:
        for entry in found["populations"]:
            full = found["width"] == 64
            rows.append(
                (
                    found["network"],
                    found["width"],
                    entry["population"],
                    f"{entry['paper_less_time_percent']} %",
                    f"{entry['less_time_percent']:.1f} %",
                    f"{entry['over_plain_percent']:+.1f} %",
                    SCALED,
                    reason if full else f"width {found['width']}, {reason}",
                )
            )
    head = (
        "network", "width", "population", "less time, paper", "less time, here", "over plain networks", "verdict",
        "note",
    )  # fmt: skip
    return f"""## Table 1: evaluating a population

How much less time evaluating a population takes as single-path networks than multi-branch, with two thirds of the
branches active. A population's time is put together from those of batches, folds and
writing kernels, and "over plain networks" is what the single-path ones cost beyond networks that never had branches.
The paper's 63.7 % recomputes to 63.0 % from its own seconds. `benchmarks/results/table1.json`, by
`{command_of(content)}`.

{markdown_table(head, rows)}"""


def _parameters(content: Mapping[str, Any]) -> str:
    rows = [
        (
            found["network"],
            found["form"],
            "" if found["paper_millions"] is None else f"{found['paper_millions']} M",
            f"{found['plain']:,}",
            f"{found['fused']:,}",
        )
        for found in content["parameters"]
    ]
    head = ("network", "form", "paper", "here, plain", "here, fused")
    return f"""## Parameter counts

Which form of a network gives the paper's count. It prints the plain network's for multi-branch ones: fused, they have
the same convolutions, and no batch normalisation. Verdict: faithful.

{markdown_table(head, rows)}"""


def _accuracy(results: Mapping[str, Any]) -> str:
    irep, plain = results["train_cifar10"], results.get("train_cifar10_plain")
    of_plain = "not trained yet" if plain is None else f"{100 * plain['metrics']['test_top1']:.2f} %"
    settings = irep["settings"]
    runs: dict[str, list[float]] = {}
    for run in results["sampled_accuracy"]["runs"]:
        runs.setdefault(run["settings"]["variant"], []).append(100 * run["test_top1"])
    names = {variant: "plain" if variant == "plain" else f"IRep, statistics `{variant}`" for variant in runs}
    rows = [(names[variant], len(found), f"{statistics.mean(found):.2f} %", SCALED) for variant, found in runs.items()]
    small = results["sampled_accuracy"]["runs"][0]["settings"]
    pair = [
        ("plain", "96.21 %", of_plain, SCALED),
        ("IRep, every branch", "96.61 % (searched)", f"{100 * irep['metrics']['test_top1']:.2f} %", SCALED),
    ]
    return f"""## Trained accuracy

At the paper's scale {IMPOSSIBLE}: its searches took 8 to 30 GPU-days, retraining comes on top. Scaled down, ResNets of
width {irep["model"]["width"]} and six units, {settings["epochs"]} epochs (the paper: width 64, eight units, 600
epochs, with a search), one recipe, one seed each, {irep["test_images"]} test images:

{markdown_table(("network", "paper's ResNet-18", "here", "verdict"), pair)}

`benchmarks/results/train_cifar10.json` and `train_cifar10_plain.json`, by
`benchmarks/studies/training/train_cifar10.py`. Still smaller,
width {small["width"]} and three units, {small["recipe"]["epochs"]} epochs of {small["images"]:,} images:

{markdown_table(("network", "seeds", "mean test top-1", "verdict"), rows)}

`benchmarks/results/sampled_accuracy.json`, by `{command_of(results["sampled_accuracy"])}`."""


def _figures(results: Mapping[str, Any]) -> str:
    two, drawn = results["paper_figure2"], results["paper_architectures"]
    searched, others = drawn["irep_resnet50"], drawn["irep_vgg16, irep_resnet18"]
    return f"""## Figures

Figure 1 and the first of two figures numbered 3 are diagrams of the method; nothing is measured in them.

### Figure 2: the age function

Equation (14) at a = {two["settings"]["limit"]:g}, mu = {two["settings"]["offset"]:g} and
eta = {two["settings"]["scale"]:g}, drawn from the function a search uses; {two["verdict"]}.
`benchmarks/results/paper_figure2.json`, by `{command_of(two)}`.

![Figure 2](pictures/{two["picture"]})

### Figure 3: feature maps of a plain and of an IRep network

{_figure_3(results.get("paper_figure3"))}

### Appendix: architectures

IRep-ResNet50, {searched["verdict"]}: {searched["why"]}. It keeps {searched["kept_by_the_text"]} branches, and half of
the space's {searched["slots"]}, rounded, is {searched["budget"]}. IRep-VGG16 and IRep-ResNet18, {others["verdict"]}:
{others["why"]}. `repconv search report` draws what you search yourself. `benchmarks/results/paper_architectures.json`,
by `{command_of(drawn)}`.

![IRep-ResNet50](pictures/{searched["picture"]})

The network that ships, {drawn["shipped"]["verdict"]} ({drawn["shipped"]["why"]}):

![The network that ships](pictures/{drawn["shipped"]["picture"]})"""


def _figure_3(three: Mapping[str, Any] | None) -> str:
    if three is None:
        return (
            "Not drawn yet: it needs a plain network, by "
            "`benchmarks/studies/training/train_cifar10.py --network resnet18`."
        )
    says = zip(three["images"], three["says"]["plain"], three["says"]["irep"], strict=True)
    return f"""{three["verdict"].capitalize()}: {three["why"]}. Two rows an image, plain above IRep: the image, the last
unit's map, then those of units 1 to {three["units"] - 1}. The paper does not say how channels become one picture; here
each map is the mean of absolute values over channels, dark to yellow from its own least to its largest. A few images
show what the networks look at and prove nothing about which is better. `benchmarks/results/paper_figure3.json`, by
`{command_of(three)}`.

![Figure 3](pictures/{three["picture"]})

{markdown_table(("image", "plain says", "IRep says"), says)}"""


def read_results(folder: Path = RESULTS) -> dict[str, Any]:
    """The content of `FILES`, and of `WHERE_TRAINED` where it is there, by name.

    Raises:
        FileNotFoundError: one of `FILES` is missing.
    """
    there = (name for name in WHERE_TRAINED if (folder / f"{name}.json").exists())
    return {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in (*FILES, *there)}


def main() -> None:
    """Write the page, or with `--check` only say whether it is what the JSON gives."""
    parser = asking(__doc__)
    parser.add_argument("--output", type=Path, default=PAGE, help="file to write (%(default)s)")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the file is not up to date")
    arguments = parser.parse_args()
    try:
        text = page(read_results())
    except FileNotFoundError as missing:
        parser.error(f"there is no {missing.filename}; `make paper` measures it")
    if not arguments.check:
        write_whole({arguments.output: text.encode()})
    elif not arguments.output.is_file() or arguments.output.read_text(encoding="utf-8") != text:
        sys.exit(f"{arguments.output} is not what the results give; run python benchmarks/paper/document.py")


if __name__ == "__main__":
    main()
