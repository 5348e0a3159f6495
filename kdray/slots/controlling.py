"""Ray Train's controller of a slot, made known to the board, which can end one that waits for room then."""

from dataclasses import dataclass
from typing import Any

import ray
from ray.train.v2._internal.execution.callback import ControllerCallback


@dataclass
class Introduction(ControllerCallback):
    """Runs in the controller as it starts; it does not start when the board is gone."""

    board: Any
    slot: int

    def after_controller_start(self, train_run_context: Any) -> None:
        """See ControllerCallback."""
        me = ray.get_runtime_context().current_actor
        ray.get(self.board.introduce.remote(self.slot, me))
