"""The network a retraining starts from: that of a found architecture, or one by its name."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from torch import nn

from repconv import list_models
from repconv.errors import SearchError
from repconv.expansion.adapting import OWN
from repconv.models.libraries import check_asked
from repconv.models.zoo import resolve
from repconv.sources.checkpoint import load
from repconv.sources.source import open_source

from ..reports.candidates import read_candidates
from ..reports.found import Found
from ..retrain_config import RetrainConfig
from ..supernet.supernet import Supernet, subnetwork
from ..tasks.network import build_network, is_own_network, named_network
from ..tasks.task import Task


def subjects(text: str, top: int = 1) -> tuple[tuple[Found | None, ...], str]:
    """What to train, as a command line says it: architectures and "", or None and the name of a network.

    Args:
        text: a file or folder, as of `read_candidates`, or a name of `repconv.list_models()` that is no file here.
        top: how many architectures.

    Raises:
        SearchError: neither, or a network with a `top` of more than one.
    """
    if Path(text).exists() or text not in list_models():
        near = get_close_matches(text, list_models(), 1, cutoff=0.8)
        if near and not Path(text).exists():
            raise SearchError(f"no file and no network is called {text} (did you mean the network {near[0]!r}?)")
        return read_candidates(text, top), ""
    if top > 1:
        raise SearchError(f"the {top} best are of what a search found, and {text} is one network")
    return (None,), text


def starting_network(found: Found | None, config: RetrainConfig, task: Task, own_code: str | None = None) -> nn.Module:
    """The network to train, in training mode: of `found`, or of the name in `config` where that is None.

    Args:
        found: the architecture.
        config: the settings; those of the network are for one by its name.
        task: what it is to learn.
        own_code: as of `searched_network`.

    Raises:
        SearchError: settings of the network beside an architecture, which has its own, or neither of the two.
        GeometryError, SourceError: as `named_network` and `searched_network`.
    """
    if found is None:
        if not config.network:
            raise SearchError("there is nothing to train: expected an architecture of a search or network=NAME")
        if config.supernet:
            raise SearchError(
                f"supernet={config.supernet} is what a found architecture goes on from; {config.network} is trained "
                "from scratch, so leave it out"
            )
        if config.grow_epochs:
            return _plain_network(config, task)
        return named_network(
            config.network,
            task,
            width=config.width,
            blocks=config.blocks,
            fixed=config.fixed,
            branches=config.branches,
        )
    check_for_architecture(config)
    return searched_network(found, task, config.supernet, own_code=own_code)


def check_for_architecture(config: RetrainConfig) -> None:
    """Refuse settings that only a network trained by its name has.

    Raises:
        SearchError: there are some.
    """
    if config.grow_epochs:
        raise SearchError(
            f"grow_epochs={config.grow_epochs} starts from a plain network, and an architecture has its branches: name "
            "a network of repconv.list_models() in its place, whose blocks get the kinds that its name stands for"
        )
    given = [key for key in ("network", "width", "blocks", "fixed", "branches") if getattr(config, key)]
    if given:
        raise SearchError(
            f"{', '.join(given)} {'is' if len(given) == 1 else 'are'} of a network that is trained by its name; an "
            "architecture names its own network, so leave it out, or name a network of repconv.list_models() in the "
            "architecture's place"
        )


def _plain_network(config: RetrainConfig, task: Task) -> nn.Module:
    """The plain network under the configuration's name, its 3x3 convolutions blocks of a `3x3` branch alone."""
    if config.fixed:
        raise SearchError(
            f"fixed={','.join(config.fixed)}: a network that grows starts from its 3x3 convolutions alone; branches= "
            "says what they may get"
        )
    base = resolve(config.network)[0]
    return named_network(base, task, width=config.width, blocks=config.blocks, fixed=(OWN,))


def searched_network(found: Found, task: Task, supernet: str = "", *, own_code: str | None = None) -> nn.Module:
    """The network of a found architecture: fresh, its gates as searched, or with the weights of its supernet.

    Args:
        found: the architecture.
        task: what the network is to learn.
        supernet: a checkpoint, or empty.
        own_code: for a network made by `package.module:factory`, that name again: what a file names is not run without
            being asked for.

    Raises:
        SearchError: the architecture is not of the network its file names.
        SourceError: its file names code that `own_code` does not.
    """
    known = {"name", "width", "blocks", "fixed", "branches"}
    if set(found.network) != known:
        raise SearchError(f"the architecture's network is described by {', '.join(sorted(known))}; got {found.network}")
    name = str(found.network["name"])
    if is_own_network(name):
        check_asked(name, () if own_code is None else (own_code,), "--network", "the architecture's network")
    if supernet:
        opened = load(supernet, own_code=own_code) if own_code else open_source(supernet).checkpoint
        model = opened.model.train()
    else:
        network = found.network
        model = build_network(
            name,
            task,
            width=network["width"],
            blocks=network["blocks"],
            fixed=network["fixed"],
            branches=network["branches"],
        )
        here = Supernet(model)
        here.put_gates(found.on(here.space).gates)
    return subnetwork(model, found.architecture)
