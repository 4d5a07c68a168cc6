"""What a search found: measured with the final weights, ranked, and written down."""

from __future__ import annotations

import dataclasses

from repconv.errors import CheckpointError
from repconv.sources.checkpoint import save

from ..folder import BEST, RESULT, SUPERNET, RunFolder
from ..reports.found import Found
from ..reports.picture import svg
from ..session import Session
from ..strategies import Strategy
from .checkpoint import Progress


def finish(folder: RunFolder, session: Session, strategy: Strategy, progress: Progress) -> None:
    """Measure what was found with the final weights, rank it, and write it down."""
    state = progress.state
    outcome = strategy.outcome(state)
    accuracies = session.measure(outcome).accuracies
    if not session.processes.first:
        return
    ages = {member.architecture: member.age for member in state.members}
    ranked = sorted(range(len(outcome)), key=lambda i: (-accuracies[i], i))
    gates = session.supernet.gates()
    config = session.config
    best = outcome[ranked[0]]
    found = Found(
        architecture=best,
        network=config.network_settings,
        gates=gates,
        accuracy=accuracies[ranked[0]],
        searched=config.provenance,
    )
    try:
        save(
            session.supernet.model,
            folder.path / SUPERNET,
            class_names=session.task.class_names,
            normalization=session.task.normalization,
            input_shape=session.task.input_shape,
        )
        supernet = SUPERNET
    except CheckpointError as error:
        supernet = f"not written: {error}"
    folder.write_json(BEST, found.to_dict())
    folder.write_text("best.svg", svg(best, f"{config.strategy}, validation accuracy {found.accuracy:.4f}"))
    # Last: a folder with it is a finished run.
    folder.write_json(
        RESULT,
        {
            "schema": "repconv.search/1",
            "space": [dataclasses.asdict(block) for block in session.supernet.space.blocks],
            "budget": session.budget,
            "age_unit": config.age_unit if config.age else None,
            "reestimated_statistics": bool(config.reestimation_images),
            "ended_early": state.generation if progress.at.epoch < config.epochs else None,
            "supernet": supernet,
            "gates": {"alpha": gates.alpha, "beta": gates.beta},
            "architectures": [
                {
                    "accuracy": accuracies[i],
                    "age": ages.get(outcome[i]),
                    **({} if session.prices is None else {"cost": session.prices.cost(outcome[i])}),
                    "active": outcome[i].active,
                }
                for i in ranked
            ],
            **({} if session.prices is None else {"prices": session.prices.to_dict(session.supernet.space)}),
            # Without the times, which are never twice the same.
            "history": [
                {key: value for key, value in record.items() if not key.startswith("seconds")}
                for record in folder.metrics()
                if record["kind"] == "generation"
            ],
        },
    )
