"""The Weights & Biases sink. Neither code, command, terminal nor the machine's load are recorded: the run's own manifest has what is needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import wandb

from xwin.run.trackers import Subject


class WandbSink:
    """See trackers.Sink. A resumed stage goes on in the run of the same id."""

    def __init__(self, subject: Subject, project: str, mode: Literal["offline", "online"]) -> None:
        settings = wandb.Settings(
            console="off", silent=True, save_code=False, disable_git=True, disable_code=True, x_disable_meta=True, x_disable_stats=True
        )
        self._run = wandb.init(
            project=project,
            id=f"{subject.identity}-{subject.name}",
            name=f"{subject.run}/{subject.stage}",
            group=subject.run,
            config=dict(subject.settings),
            dir=subject.folder,
            mode=mode,
            resume="allow" if mode == "online" else None,
            reinit="create_new",
            settings=settings,
        )

    def tell(self, step: int, time: float, values: Mapping[str, float]) -> None:
        """See Sink."""
        self._run.log({**values, "_timestamp": time}, step=step)

    def close(self) -> None:
        """See Sink."""
        self._run.finish()
