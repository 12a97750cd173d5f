"""The training loop: steps, learning rate, clipping, checkpoints and progress, for any objective."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch

from adaptc.errors import LoadError
from adaptc.runtime.progress import SILENT, Progress
from adaptc.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from adaptc.training.recipe import Recipe

NOTED = 10
"""Steps whose mean loss is told with each step."""


@dataclass(frozen=True, slots=True)
class StepLoss:
    """What an objective says of one step.

    Attributes:
        loss: Loss, before the step; nats a token for gates and stitches.
        share: Share of all blocks that were skipped in it, 0 to 1; 0 where nothing skips.
    """

    loss: float
    share: float = 0.0


class Objective(Protocol):
    """What is trained, and towards what. The loop does the rest."""

    def start(self, progress: Progress) -> None:
        """Set the weights that training starts from."""

    def weights(self) -> Mapping[str, torch.nn.Parameter]:
        """Return all weights that are kept, by name; those that require a gradient are trained."""

    def begin_step(self, step: int) -> None:
        """Do what comes before a step, such as fitting what no gradient trains."""

    def backward(self, step: int, random: np.random.Generator) -> StepLoss:
        """Add the gradients of one step, drawn by `random`, to the weights."""

    def clip_groups(self) -> Iterable[Sequence[torch.nn.Parameter]]:
        """Return groups of weights whose gradient norms are clipped to 1, each group by itself."""

    def finished(self) -> bool:
        """Return whether to stop now; asked after each step."""

    def identity(self) -> dict[str, Any]:
        """Return what must be the same for a checkpoint to fit, as plain values."""

    def buffers(self) -> Mapping[str, torch.Tensor]:
        """Return what else a checkpoint must hold, by name."""

    def restore(self, weights: Mapping[str, torch.Tensor], buffers: Mapping[str, torch.Tensor]) -> None:
        """Take the weights and buffers of a checkpoint."""


AnObjective = TypeVar("AnObjective", bound=Objective)


@dataclass(frozen=True, slots=True)
class Optimization:
    """How AdamW steps.

    Attributes:
        steps: Steps in all, at most.
        seed: Seed of the draws of each step.
        rate: Learning rate of a step, by its number from 0.
        betas: AdamW's decay rates of its running means.
        weight_decay: AdamW's weight decay.
    """

    steps: int
    seed: int
    rate: Callable[[int], float]
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.0

    @classmethod
    def of(cls, recipe: Recipe) -> Optimization:
        """Return a recipe's: the rate rises in the first twentieth of the steps, then falls along a cosine."""

        def rate(step: int) -> float:
            done = step / recipe.steps
            return recipe.learning_rate * min(1.0, done * 20 + 0.05) * (0.5 + 0.49 * math.cos(math.pi * done))

        return cls(recipe.steps, recipe.seed, rate)


class Training(Generic[AnObjective]):
    """An objective in training.

    Attributes:
        objective: What is trained.
        step: Number of steps done.
        curve: (step, loss) of each.
    """

    def __init__(self, objective: AnObjective, optimization: Optimization) -> None:
        """Begin at step 0.

        Args:
            objective: What is trained.
            optimization: How.
        """
        self.objective, self.optimization = objective, optimization
        self.step = 0
        self.curve: list[tuple[int, float]] = []
        self._resumed: Checkpoint | None = None

    def start_or_resume(self, checkpoint: Path, progress: Progress, *, restart: bool) -> None:
        """Go on from a checkpoint if there is one, else start the objective.

        What the start has fitted is written as a checkpoint at once: for gates it takes longer than all that follows.

        Raises:
            LoadError: the checkpoint is damaged, or of another run.
        """
        if restart or not self.resume(checkpoint):
            self.objective.start(progress)
            self._save(checkpoint, {})

    def resume(self, path: Path) -> bool:
        """Go on from a checkpoint of the same objective and text; return False if there is none.

        Raises:
            LoadError: it is damaged, or of another run.
        """
        if not path.exists():
            return False
        checkpoint = load_checkpoint(path)
        if checkpoint.run != self.objective.identity():
            raise LoadError(f"{path}: of another recipe, text, layers or routes; --restart begins anew")
        self.step, self.curve = checkpoint.step, list(checkpoint.curve)
        self.objective.restore(checkpoint.weights, checkpoint.buffers)
        self._resumed = checkpoint
        return True

    def run(
        self,
        progress: Progress = SILENT,
        checkpoint: Path | None = None,
        every: int = 25,
        seconds: float = math.inf,
    ) -> None:
        """Train from the current step to the last one, or until the time is up.

        Args:
            progress: Told of each step, with the mean loss of the last ones.
            checkpoint: Written every so many steps and after the last one, so that a killed run goes on from there.
            every: Steps between checkpoints.
            seconds: Time after which no step is begun: another run goes on from the checkpoint.
        """
        until = time.monotonic() + seconds
        trained = [weight for weight in self.objective.weights().values() if weight.requires_grad]
        if not trained:
            return
        plan = self.optimization
        optimizer = torch.optim.AdamW(trained, betas=plan.betas, weight_decay=plan.weight_decay)
        if self._resumed is not None:
            self._restore_moments(optimizer, self._resumed)
        progress.step(self.step, plan.steps)
        while self.step < plan.steps and time.monotonic() < until:
            self.objective.begin_step(self.step)
            for group in optimizer.param_groups:
                group["lr"] = plan.rate(self.step)
            optimizer.zero_grad(set_to_none=True)
            result = self.objective.backward(self.step, np.random.default_rng((plan.seed, self.step)))
            for weights in self.objective.clip_groups():
                torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            self.step += 1
            self.curve.append((self.step, round(result.loss, 5)))
            progress.step(self.step, plan.steps, self._note(result.share))
            if checkpoint is not None and (self.step % every == 0 or self.step == plan.steps):
                self._save(checkpoint, optimizer.state)
            if self.objective.finished():
                return
        if checkpoint is not None and self.step < plan.steps:
            self._save(checkpoint, optimizer.state)

    def sampled_curve(self, points: int = 50) -> list[list[float]]:
        """Return the curve thinned to about so many points, for a file's metadata."""
        return [list(point) for point in self.curve[:: max(1, len(self.curve) // points)]]

    def _note(self, share: float) -> str:
        losses = [loss for _, loss in self.curve[-NOTED:]]
        skipped = f", {share:.1%} of blocks skipped" if share else ""
        return f"loss {sum(losses) / len(losses):.4f}{skipped}"

    def _save(self, path: Path, states: Mapping[torch.Tensor, Any]) -> None:
        """Write a checkpoint; `states` is the optimizer's of each weight, empty before the first step."""
        weights = self.objective.weights()
        moments = {
            name: (states[weight]["exp_avg"], states[weight]["exp_avg_sq"])
            for name, weight in weights.items()
            if weight in states
        }
        run, buffers = self.objective.identity(), self.objective.buffers()
        save_checkpoint(Checkpoint(run, self.step, tuple(self.curve), dict(weights), moments, buffers), path)

    def _restore_moments(self, optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> None:
        """Give the optimizer the running means that it had when the checkpoint was written."""
        weights = self.objective.weights()
        for name, (first, second) in checkpoint.moments.items():
            weight = weights[name]
            optimizer.state[weight] = {
                "step": torch.tensor(float(checkpoint.step)),
                "exp_avg": first.to(weight.device),
                "exp_avg_sq": second.to(weight.device),
            }
        self._resumed = None
