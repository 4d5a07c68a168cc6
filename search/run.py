"""Running a search from its folder: train, measure, select, breed, again and again; killed at any moment, it goes on.

Everything drawn is a function of the seed and the position in the run, or comes from generators the checkpoint holds.
On a CPU a run that was killed, and goes on with as many processes, ends with the same bits as one that was not.

Started by `torchrun` or `accelerate launch`, several processes search as one, in a folder all of them can read.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from torch import Tensor

from repconv.models.libraries import check_asked

from .config import SearchConfig, config_from_dict
from .costs.prices import Prices
from .folder import CONFIG, POPULATIONS, PRICES, RESULT, TENSORBOARD, RunFolder
from .processes import joined
from .reports.history import measuring_left_s, of_children_alone, without_gain
from .resuming import Pace, Position, Report, loaders_lost_in_words, rest_of_epoch
from .running.checkpoint import Progress, restored, write_checkpoint
from .running.result import finish
from .session import Session
from .strategies import State, Strategy
from .strategies.evolution import random_architecture
from .strategies.protocol import architectures_of
from .strategies.training import Training
from .supernet.architecture import Architecture
from .supernet.evaluate import Evaluation
from .supernet.precision import TAU, agreed, measured_alike
from .supernet.records import PRICED
from .tasks.data import is_own_data
from .tasks.network import is_own_network


def run(
    folder: RunFolder,
    report: Report = lambda _: None,
    clock: Callable[[], float] = time.perf_counter,
    *,
    own_code: Collection[str] = (),
) -> None:
    """Start the run of `folder`, or go on with it, to its end; a finished run is left as it is.

    Args:
        folder: with its configuration.
        report: is shown every line of the metrics as it is written, and first what is otherwise than the settings say,
            of kind `note`; by the first process where there are several.
        clock: seconds.
        own_code: for data or a network made by `package.module:factory`, those names again: what a configuration names
            is not run without being asked for.

    Raises:
        SourceError: the configuration names code that `own_code` does not.
        SearchError: the configuration makes no sense, the checkpoint is damaged, or a loss is not finite.
        OutputError: a file cannot be written; the last checkpoint is intact.
        BuildError: a process that loads images was killed; likewise.
    """
    config = config_from_dict(folder.read_json(CONFIG), str(folder.path / CONFIG))
    if (folder.path / RESULT).exists():
        return
    if is_own_data(config.data):
        check_asked(config.data, own_code, "--data", f"{folder.path / CONFIG}: the data")
    if is_own_network(config.network):
        check_asked(config.network, own_code, "--network", f"{folder.path / CONFIG}: the network")
    with joined(config.device) as (processes, device), folder.held() if processes.first else nullcontext():
        _run(folder, Session(config, processes, device), report, clock)


def _run(folder: RunFolder, session: Session, report: Report, clock: Callable[[], float]) -> None:
    config, first = session.config, session.processes.first
    progress = restored(folder, session)
    session.prices = _prices(folder, session)
    strategy = session.strategy()
    writer = _tensorboard(folder, progress.at.epoch * session.steps_an_epoch + progress.at.step) if first else None

    def tell(record: Mapping[str, Any]) -> None:
        if not first:
            return
        folder.append_metrics(record)
        if writer is not None:
            for key, value in record.items():
                if isinstance(value, float):
                    writer.add_scalar(f"{record['kind']}/{key}", value, record["step"])
            writer.flush()
        report(record)
        aged = config.age and config.strategy == "des"
        if aged and record["kind"] == "generation" and of_children_alone(folder.metrics()) == _CHILDREN_ALONE:
            report({"kind": "note", "note": _NOBODY_LIVED_ON})

    if first:
        for note in session.notes:
            report({"kind": "note", "note": note})
    pace = Pace(clock)
    with loaders_lost_in_words():
        while progress.at.epoch < config.epochs:
            if _gains_no_more(folder, session, strategy, progress):
                if first:
                    report({"kind": "note", "note": _ended_early(config, progress.state)})
                break
            progress = _epoch(folder, session, strategy, progress, tell, pace)
    finish(folder, session, strategy, progress)


def _prices(folder: RunFolder, session: Session) -> Prices | None:
    """Those of the run, found once by the first process: times are never twice the same, and a resumed run shall be."""
    if session.config.objective == "none":
        return None
    if session.processes.first and not (folder.path / PRICES).exists():
        folder.write_json(PRICES, session.priced().to_dict(session.supernet.space))
    session.processes.gathered([None])  # the others read what it wrote
    content = folder.read_json(PRICES, PRICED)
    return Prices.of_record(content, session.supernet.space, str(folder.path / PRICES))


def _with_costs(content: dict[str, Any], state: State, prices: Prices | None) -> dict[str, Any]:
    """A state's plain containers, each member with what it costs, where costs count."""
    if prices is None:
        return content
    for key, members in (("members", state.members), ("asked", state.asked)):
        for record, member in zip(content[key], members, strict=True):
            record["cost"] = prices.cost(member.architecture)
    return content


def _mean_cost(state: State, prices: Prices | None) -> dict[str, float]:
    if prices is None:
        return {}
    return {"mean_cost": sum(prices.cost(m.architecture) for m in state.members) / len(state.members)}


def _gains_no_more(folder: RunFolder, session: Session, strategy: Strategy, progress: Progress) -> bool:
    """Whether the last generations brought no better accuracy; never while what is found is over the budget."""
    patience = session.config.patience
    if not patience or progress.train is not None or not progress.state.generation:
        return False
    stands = session.processes.decided(without_gain(folder.metrics())) >= patience
    return stands and all(one.size <= session.budget for one in strategy.outcome(progress.state))


def _ended_early(config: SearchConfig, state: State) -> str:
    return (
        f"no better accuracy in {config.patience} generations (patience): the search ends after generation "
        f"{state.generation} of {config.generations}"
    )


def _epoch(
    folder: RunFolder,
    session: Session,
    strategy: Strategy,
    progress: Progress,
    tell: Report,
    pace: Pace,
) -> Progress:
    """The rest of an epoch, and at the end of a generation its evaluation and selection."""
    config, at = session.config, progress.at
    searching = at.epoch - config.warmup_epochs
    if searching >= 0 and progress.train is None:
        # All processes draw, here and for every mini-batch, so that their generators stay alike; one decides.
        question = session.processes.decided(strategy.ask(progress.state, progress.generator))
        progress = replace(progress, **question._asdict())
        if question.training.afresh:
            session.begin_gates()
    asked, training = progress, strategy.warm_up if progress.train is None else progress.training

    def save_at(there: Position) -> None:
        write_checkpoint(folder, session, replace(asked, at=there))

    position = at.epoch, at.step, _count(session, progress), training.gates
    with session.held_out(*position) as held_out:

        def update(x: Tensor, y: Tensor, step: int) -> float:
            batch = session.update(x, y, _drawn(session, asked, step), step, training, next(held_out))
            return sum(batch.losses) / len(batch.losses)  # of this process's share

        batches = session.batches(*position)
        beside = measuring_left_s(folder.metrics(), config.generations) if session.processes.first else None
        rest_of_epoch(session, at, batches, update=update, keep=save_at, tell=tell, pace=pace, beside_s=beside)
    last = searching >= 0 and ((searching + 1) % config.generation_epochs == 0 or at.epoch + 1 == config.epochs)
    if last:
        state = _selected(folder, session, strategy, progress, tell)
        progress = replace(progress, state=state, train=None, measure=(), training=Training())
    progress = replace(progress, at=Position(at.epoch + 1))
    write_checkpoint(folder, session, progress)
    return progress


def _count(session: Session, progress: Progress) -> int:
    """How many architectures a mini-batch trains."""
    wanted = session.config.architectures
    return wanted if progress.train is None else min(wanted, len(progress.train))


def _drawn(session: Session, progress: Progress, step: int) -> list[Architecture]:
    """What this mini-batch trains: in the warm-up fresh random architectures, then what the strategy asked for."""
    wanted, generator = _count(session, progress), progress.generator
    if progress.train is None:
        return [random_architecture(session.supernet.space, session.budget, generator) for _ in range(wanted)]
    return progress.training.drawn(
        progress.train,
        wanted,
        gates=session.supernet.gates,
        budget=session.budget,
        share=_share_of_generation(session, step),
        generator=generator,
    )


def _share_of_generation(session: Session, step: int) -> float:
    """How much of its generation's updates are done before that update, counted over the whole search."""
    config, each = session.config, session.steps_an_epoch
    done = step - config.warmup_epochs * each
    length = config.generation_epochs * each
    first = done // length * length
    return (done - first) / min(length, session.steps - config.warmup_epochs * each - first)


def _selected(folder: RunFolder, session: Session, strategy: Strategy, progress: Progress, tell: Report) -> State:
    """The state after measuring what was asked for."""
    found, tau = _measured(folder, session, progress)
    state = strategy.tell(progress.state, found.accuracies, session.supernet.gates())
    state = session.processes.decided(state)
    space = [dataclasses.asdict(block) for block in session.supernet.space.blocks]
    if session.processes.first:
        folder.write_json(
            f"{POPULATIONS}/{state.generation:04d}.json",
            {"schema": "repconv.population/1", "space": space, **_with_costs(state.to_dict(), state, session.prices)},
        )
    accuracies = [m.accuracy for m in state.members if m.accuracy is not None] or list(found.accuracies)
    ages = [float(m.age) for m in state.members]
    sizes = [float(m.architecture.size) for m in state.members]
    tell(
        {
            "kind": "generation",
            "generation": state.generation,
            "epoch": progress.at.epoch + 1,
            "step": (progress.at.epoch + 1) * session.steps_an_epoch,
            "measured": len(found.accuracies),
            "population": len(state.members),
            "best_accuracy": max(accuracies),
            "mean_accuracy": sum(accuracies) / len(accuracies),
            "worst_accuracy": min(accuracies),
            "mean_age": sum(ages) / len(ages),
            "parents": len(progress.state.members),
            "survivors": len({*architectures_of(progress.state.members)} & {*architectures_of(state.members)}),
            "mean_size": sum(sizes) / len(sizes),
            **_mean_cost(state, session.prices),
            **({} if tau is None else {TAU: tau}),
            "seconds_fold": found.fold_s,
            "seconds_reestimate": found.reestimate_s,
            "seconds_write": found.write_s,
            "seconds_run": found.run_s,
        }
    )
    return state


def _measured(folder: RunFolder, session: Session, progress: Progress) -> tuple[Evaluation, float | None]:
    """The accuracies of what was asked for, and what trying both kinds of numbers gave, where they were."""
    if session.config.evaluation_dtype != "auto":
        return session.measure(progress.measure), None
    half = session.processes.decided(agreed(folder.metrics()))
    first = progress.state.generation == 0
    return measured_alike(session.measure, progress.measure, session.device, first=first, half=half)


_CHILDREN_ALONE = 3
"""Generations in which no parent lives on before that is said, once a streak."""
_NOBODY_LIVED_ON = (
    f"no parent outlived its children in {_CHILDREN_ALONE} generations: growing older costs more than accuracies are "
    f"apart, so age decides and accuracy does not; --set age_unit=spread weighs age by how far they are apart, and "
    f"--set offspring=2 leaves more to choose from"
)


def _tensorboard(folder: RunFolder, step: int) -> Any:  # noqa: ANN401  # an optional library
    """A writer, None where TensorBoard is not installed."""
    from unittest import mock

    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    # Its file is named after the machine, which is nobody's business to whom the folder is handed.
    with mock.patch("socket.gethostname", return_value="host"):
        return SummaryWriter(str(folder.path / TENSORBOARD), purge_step=step)
