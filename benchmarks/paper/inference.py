"""The inference columns of Tables 2 and 3: one image, float32, networks of full size, multi-branch and fused.

    python benchmarks/paper/inference.py [--networks irep_resnet18,darts_v2] [--rounds 25] [--keep]

`--keep` measures only the networks that the result does not hold, in turns with their table's IRep network, and adds
them as a session of their own, with its environment.

Every network runs as it is trained and as it is fused: this package's blocks by `repconv.fuse(model)`, networks of
cells by the graph fuser, which finds little in them. In torch eager and in onnxruntime, in turns with all networks of
its table; onnxruntime folds batch normalisation by itself in either form. Weights and statistics are random: latency
does not depend on them, and none are published for the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import onnx
import torch
from torch import Tensor, nn

from repconv import create_model, fuse
from repconv.benchmarks.environment import environment
from repconv.benchmarks.harness.turns.timing import LatencyReport, calls_lasting, ratio, time_in_turns
from repconv.benchmarks.paper.architectures import IMAGENET_KINDS, cifar_architecture, searched_resnet50
from repconv.benchmarks.paper.published.amoebanet import AmoebaNet
from repconv.benchmarks.paper.published.amoebanet_cells import AMOEBANET_A_CELLS, AMOEBANET_B_CELLS
from repconv.benchmarks.paper.published.cells import cifar_network, imagenet_network
from repconv.benchmarks.paper.published.genotypes import GENOTYPES
from repconv.benchmarks.paper.published.tables import PARAMETERS, REFERENCES
from repconv.benchmarks.paper.sessions import measured
from repconv.benchmarks.studies.common import asking, head, positive, read_result, some_of, write_result
from repconv.benchmarks.studies.graph.graph_counts import count, flops, session
from repconv.benchmarks.studies.graph.networks import randomise, to_onnx
from repconv.graph import fuse_onnx
from repconv.search.supernet.space import SearchSpace
from repconv.search.supernet.supernet import subnetwork

SCHEMA = "repconv.paper.inference/1"
SAMPLE_S = 0.03
"""Seconds a sample lasts at least: shorter ones are mostly noise."""

OURS = {
    "cifar10": ("vgg16", "resnet18", "repvgg_vgg16", "acnet_vgg16", "dbb_vgg16", "irep_vgg16", "irep_resnet18"),
    "imagenet": ("resnet50", "repvgg_resnet50", "acnet_resnet50", "dbb_resnet50", "irep_resnet50"),
}
_large_amoebanet = partial(AmoebaNet, stem="imagenet", num_classes=1000)
CELLS: Mapping[str, Mapping[str, Callable[[], nn.Module]]] = {
    "cifar10": {
        **{name: partial(cifar_network, genotype) for name, genotype in GENOTYPES.items()},
        "amoebanet_a_n6_f36": partial(AmoebaNet, AMOEBANET_A_CELLS, repeats=6, width=36),
    },
    "imagenet": {
        **{
            f"{name}_imagenet": partial(imagenet_network, GENOTYPES[name]) for name in ("darts_v2", "p_darts", "cars_i")
        },
        "amoebanet_a_n4_f50": partial(_large_amoebanet, AMOEBANET_A_CELLS, repeats=4, width=50),
        "amoebanet_b_n3_f62": partial(_large_amoebanet, AMOEBANET_B_CELLS, repeats=3, width=62),
    },
}
"""What makes a network of cells; an AmoebaNet is named with the N and F of its authors."""
SIDES = {"cifar10": 32, "imagenet": 224}


@dataclass(frozen=True)
class Network:
    """A network of a table: as trained and fused, each for torch and for onnxruntime, and an image."""

    name: str
    data: str
    model: nn.Module
    fused: nn.Module
    files: Mapping[str, onnx.ModelProto]
    x: Tensor


def names() -> dict[str, str]:
    """Every network, and the data set of its table."""
    return {name: data for table in (OURS, CELLS) for data in table for name in table[data]}


def build(name: str, data: str) -> Network:
    """The network of that name."""
    torch.manual_seed(0)
    side = SIDES[data]
    x = torch.randn(1, 3, side, side)
    if name in OURS[data]:
        model = randomise(_blocks(name))
        fused = fuse(model)[0]
        return Network(
            name=name,
            data=data,
            model=model,
            fused=fused,
            files={"unfused": to_onnx(model, x), "fused": to_onnx(fused, x)},
            x=x,
        )
    model = randomise(CELLS[data][name]())
    original = to_onnx(model, x)
    program = fuse(model, (x,))[0].module()
    return Network(
        name=name,
        data=data,
        model=model,
        fused=program,
        files={"unfused": original, "fused": fuse_onnx(original)[0]},
        x=x,
    )


def _blocks(name: str) -> nn.Module:
    """A network of this package; an IRep one with as many branches as its search keeps."""
    if name == "irep_resnet50":
        model = create_model(name, branches=IMAGENET_KINDS)
        return subnetwork(model, searched_resnet50(SearchSpace.of(model)))
    model = create_model(name)
    return subnetwork(model, cifar_architecture(SearchSpace.of(model))) if name.startswith("irep") else model


def unclocked(one: Network) -> dict[str, object]:
    """What of a network needs no clock: parameters, multiply-adds and convolutions, by form."""
    found: dict[str, object] = {"network": one.name, "data": one.data, "input": list(one.x.shape)}
    for form, model in (("unfused", one.model), ("fused", one.fused)):
        found[form] = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "multiply_adds": flops(model, one.x) // 2,
            "convolutions": count(one.files[form])["convolutions"],
        }
    return found


def timed(subjects: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, LatencyReport]:
    """Seconds of one call of each; a sample is as many calls as take `SAMPLE_S`."""
    calls = {name: calls_lasting(run, SAMPLE_S) for name, run in subjects.items()}
    found = time_in_turns({name: partial(_repeat, run, calls[name]) for name, run in subjects.items()}, rounds=rounds)
    return {
        name: LatencyReport(name, tuple(s / calls[name] for s in report.samples_s)) for name, report in found.items()
    }


def _repeat(run: Callable[[], object], times: int) -> None:
    for _ in range(times):
        run()


def latencies(networks: list[Network], rounds: int) -> dict[str, dict[str, dict[str, object]]]:
    """By network: what each runtime takes in each form, and ratios with 95 % intervals."""
    eager = {
        (n.name, form): partial(model, n.x)
        for n in networks
        for form, model in (("unfused", n.model), ("fused", n.fused))
    }
    runs = {
        (n.name, form): partial(session(file).run, None, {"x": n.x.numpy()})
        for n in networks
        for form, file in n.files.items()
    }
    found: dict[str, dict[str, dict[str, object]]] = {n.name: {} for n in networks}
    for runtime, subjects in (("torch", eager), ("onnxruntime", runs)):
        with torch.inference_mode():
            reports = timed({"/".join(key): run for key, run in subjects.items()}, rounds)
        for one in networks:
            forms = {form: reports[f"{one.name}/{form}"] for form in ("unfused", "fused")}
            reference = reports.get(f"{REFERENCES[one.data]}/fused")
            row: dict[str, object] = {
                **{f"{form}_ms": report.median_ms for form, report in forms.items()},
                "unfused_over_fused": vars(ratio(forms["unfused"], forms["fused"])),
            }  # fmt: skip
            if reference is not None:
                row["unfused_over_reference"] = vars(ratio(forms["unfused"], reference))
            found[one.name][runtime] = row | {
                "samples_s": {form: list(report.samples_s) for form, report in forms.items()}
            }
    return found


def parameter_counts() -> list[dict[str, object]]:
    """The paper's counts beside ours, by form."""
    rows: list[dict[str, object]] = []
    for name, paper, base, arguments, form in PARAMETERS:
        model = create_model(base, **arguments).eval()  # type: ignore[arg-type]  # a table's
        plain, fused = (sum(p.numel() for p in net.parameters()) for net in (model, fuse(model)[0]))
        rows.append({"network": name, "paper_millions": paper, "form": form, "plain": plain, "fused": fused})
    return rows


def main() -> None:
    """Measure, print, write JSON."""
    known = names()
    parser = asking(__doc__, "paper_inference")
    parser.add_argument("--networks", type=some_of(tuple(known)), default=tuple(known), help="with commas (all)")
    parser.add_argument("--rounds", type=positive, default=25)
    parser.add_argument("--keep", action="store_true", help="measure only what the output does not hold")
    arguments = parser.parse_args()
    kept = read_result(arguments.output, SCHEMA) if arguments.keep else None
    known_rows = measured(kept) if kept else {}
    chosen = [name for name in arguments.networks if name not in known_rows]
    if not chosen:
        print(f"{arguments.output} is kept")
        return
    rows: list[dict[str, object]] = []
    taken: dict[str, object] = {
        "environment": environment(), "threads": torch.get_num_threads(), "rounds": arguments.rounds, "rows": rows,
    }  # fmt: skip
    content: dict[str, object] = (
        kept | {"added": [*kept.get("added", []), taken]}
        if kept
        else {**head(__file__, SCHEMA), **taken, "references": REFERENCES, "parameters": parameter_counts()}
    )
    for data in SIDES:
        wanted = [name for name in chosen if known[name] == data]
        if not wanted:
            continue
        beside = [REFERENCES[data]] if kept and REFERENCES[data] not in wanted else []
        networks = [build(name, data) for name in (*beside, *wanted)]
        found = latencies(networks, arguments.rounds)
        for one in networks:
            rows.append(unclocked(one) | {"latency": found[one.name]})
            for runtime, row in found[one.name].items():
                print(f"{one.name} {runtime}: {row['unfused_ms']:.2f} ms, fused {row['fused_ms']:.2f} ms", flush=True)
        write_result(arguments.output, content)


if __name__ == "__main__":
    main()
