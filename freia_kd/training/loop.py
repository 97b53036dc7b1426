"""The loop that every training of this package runs in: logged, resumable, rolled back on NaN."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch

from .. import ranks
from ..errors import TrainingError
from .batchnorm import WholeBatchNorm
from .checkpoints import Checkpoints

SAVE_COST = 0.5  # seconds that a state may take; those that take longer are kept less often
MAX_PAUSE = 20  # times less often at most
LOG_EVERY = 20  # steps between lines of metrics, and between looks at losses on accelerators
LOOK_EVERY = 1.0  # seconds that one process lets pass without a look
DEFERRED = ("cuda",)  # devices whose losses wait for a look, since reading one waits for all work
SNAPSHOT_EVERY = 100  # steps between the states to roll back to
RETRIES = 3  # rollbacks before giving up


def own_generator(
    generator: torch.Generator | None, device: torch.device | str = "cpu"
) -> torch.Generator:
    """The generator given, or a new one that torch's global generator seeds.

    Thus without one `torch.manual_seed` decides, as in torch itself.

    Arguments:
        generator: The generator, if any.
        device: Where a new one is to be.
    """
    if generator is not None:
        return generator
    return torch.Generator(device).manual_seed(int(torch.randint(2**62, ())))


class Stateful(Protocol):
    """What modules, optimizers and schedules have in common."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Any) -> Any: ...


@dataclass(frozen=True)
class Remedies:
    """What may help where the loss of a training stays non-finite.

    Arguments:
        rate_option: How the option of the learning rate is typed, up to its value.
        others: What else may help.
    """

    rate_option: str = ""
    others: tuple[str, ...] = ()

    def words(self, rate: float) -> str:
        """The advice, where the learning rate was `rate` at first.

        Example:
            >>> Remedies("--learning-rate ").words(0.1)
            'lower the learning rate (--learning-rate 0.01; it was 0.1), or check the weights...
        """
        lower = f"lower the learning rate ({self.rate_option}{rate / 10:.1g}; it was {rate:g})"
        return ", or ".join([lower, *self.others, "check the weights and inputs that were given"])


NO_REMEDIES = Remedies()


class _Unread(NamedTuple):
    """The losses of a step that nobody has looked at yet."""

    step: int
    random: torch.Tensor  # the generator's state before the step
    values: dict[str, torch.Tensor]


class TrainingLoop:
    """Counts steps, and keeps what training needs to be stopped and resumed exactly.

    Iterate over it, and call :meth:`accept` with the loss terms before the optimizer's step:

    ```python
    for _ in loop:
        terms = objective(flow, teacher, batch)
        if loop.accept(terms.total, terms.items()):
            loop.backward(terms.total); optimizer.step(); schedule.step()
    ```

    Where processes share the work (:mod:`freia_kd.ranks`) each has its rows of the batch; what is
    logged, judged and learned from is of the whole, the statistics that layers learn included, and
    the first process keeps the states.

    A non-finite loss puts everything back to the last good state, halves the learning rate of
    `optimizer` (schedules that multiply it, like the cosine, keep that), and goes on with fresh
    random numbers; after `RETRIES` of them in all it gives up. States that are not finite are
    never kept.

    To read a loss is to wait for the device that computes it. So on an accelerator losses are
    looked at together, at the latest before they are shown or logged and before a state is kept.
    If one of them turns out not to be finite, its step is taken again from the last good state
    with the random numbers that it had, and refused as if it had been looked at in time: when
    looks are taken changes no bit of what is learned. Until then the gradients of such a loss are
    zero, so that weights stay finite.

    Arguments:
        title: What a person reads beside the bar.
        steps: How many steps to run.
        parts: Everything that changes while training, by name.
        generator: The source of all random numbers of the loop's body.
        optimizer: The optimizer whose learning rate a rollback halves.
        checkpoints: Where to keep states and metrics, if anywhere; training resumes from what is
            there.
        result: The parts that are wanted after the last step, when moments of an optimizer and the
            like are not kept any more; all of them if empty.
        remedies: What the error of a loss that stays non-finite advises.

    Raises:
        TrainingError: When the loss stays non-finite.
    """

    def __init__(
        self,
        title: str,
        steps: int,
        parts: Mapping[str, Stateful],
        generator: torch.Generator,
        optimizer: torch.optim.Optimizer,
        checkpoints: Checkpoints | None = None,
        result: Sequence[str] = (),
        remedies: Remedies = NO_REMEDIES,
    ) -> None:
        self.title, self.steps, self.result = title, steps, tuple(result)
        self.remedies = remedies
        self.parts, self.generator, self.optimizer = parts, generator, optimizer
        self.checkpoints = checkpoints
        self.step = self.rollbacks = 0
        first = optimizer.param_groups[0]
        self.rate = float(first.get("initial_lr", first["lr"]))  # before rollbacks and schedules
        self.last_values: dict[str, float] = {}
        self._unread: list[_Unread] = []
        self._good: list[tuple[int, dict[str, Any]]] = []  # steps, and states before them
        self._refused: tuple[int, list[str]] | None = None  # a step to be taken again, and why
        saved = checkpoints.load() if checkpoints else None
        if saved:
            self._restore(saved)
            self.generator.set_state(saved["generator"])
            self.step, self.rollbacks = saved["step"], saved["rollbacks"]
            self.steps = min(steps, saved["steps"])
            self.last_values = saved["values"]
        if checkpoints:
            checkpoints.forget_after(self.step)
        self._last = self.steps  # unless `stop` is called
        self._random = generator.get_state()
        self.mark()

    def _snapshot(self) -> dict[str, Any]:
        return {"parts": {k: copy.deepcopy(p.state_dict()) for k, p in self.parts.items()}}

    def _restore(self, state: dict[str, Any]) -> None:
        for name, saved in state["parts"].items():
            self.parts[name].load_state_dict(copy.deepcopy(saved))

    def _finite(self) -> bool:
        tensors = (v for part in self.parts.values() for v in part.state_dict().values())
        return all(bool(torch.isfinite(v).all()) for v in tensors if isinstance(v, torch.Tensor))

    def _save(self) -> None:
        if self.checkpoints and self._finite():
            wanted = self.result if self.step >= self.steps else ()
            state = {
                "parts": {k: self.parts[k].state_dict() for k in wanted or self.parts},
                "generator": self.generator.get_state(),
                "step": self.step,
                "steps": self.steps,
                "rollbacks": self.rollbacks,
                "values": self.last_values,
            }
            self.checkpoints.save(state)

    def __iter__(self) -> Iterator[int]:
        if self.step >= self.steps:
            return
        with ExitStack() as stack:
            stage = (
                stack.enter_context(self.checkpoints.progress.stage(self.title, self.steps))
                if self.checkpoints
                else None
            )
            if ranks.count() > 1:
                stack.enter_context(WholeBatchNorm())
            every = self.checkpoints.every if self.checkpoints else math.inf
            save_at = time.monotonic() + every
            look_at = time.monotonic() + LOOK_EVERY
            while self.step < self.steps:
                if self.checkpoints and self.checkpoints.is_enough(self.step, self.steps):
                    break
                self._random = self.generator.get_state()
                yield self.step
                if self._unread and self._is_look_due(min(look_at, save_at)):
                    fault = self._look()
                    look_at = time.monotonic() + LOOK_EVERY
                    if fault is not None:
                        self._take_again(*fault)
                        continue
                self.step += 1
                if stage:
                    stage.update(self.step, self.last_values)
                if self.checkpoints and (self.step % LOG_EVERY == 0 or self.step == self.steps):
                    self.checkpoints.log(self.step, self.last_values)
                if self.step % SNAPSHOT_EVERY == 0 and self._finite():
                    self.mark()
                start = time.monotonic()
                if start >= save_at and not self._unread:
                    self._save()
                    end = time.monotonic()
                    pause = min(max(1.0, (end - start) / SAVE_COST), MAX_PAUSE)
                    save_at = end + every * pause
            self._save()

    def mark(self) -> None:
        """Makes the present state the one that a rollback of this or a later step goes back to."""
        earlier = self._good if self._unread else []
        self._good = [*earlier, (self.step, self._snapshot())]

    def stop(self) -> None:
        """Makes the present step the last one."""
        self.steps = self.step + 1

    def backward(self, loss: torch.Tensor, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Makes the gradients of an optimizer's parameters those of a loss.

        They are averaged over the processes that share the batch.

        Arguments:
            loss: The scalar to be minimised.
            optimizer: Another than the loop's, whose parameters alone get gradients.
        """
        groups = (optimizer or self.optimizer).param_groups
        parameters = [p for group in groups for p in group["params"]]
        (optimizer or self.optimizer).zero_grad()
        with ranks.connected():
            loss.backward(inputs=parameters if optimizer else None)
        whole = loss.detach().clone()
        gradients = [p.grad for p in parameters if p.grad is not None]
        ranks.average([*gradients, whole])
        for gradient in gradients if whole.device.type in DEFERRED else ():
            gradient.masked_fill_(~whole.isfinite(), 0)

    def accept(self, loss: torch.Tensor, terms: Any = ()) -> bool:
        """Whether to learn from the loss; if not, everything is put back to the last good state.

        Arguments:
            loss: The scalar to be minimised.
            terms: Named summands for the log, pairs of a name and a scalar.
        """
        if self._refused is not None and self._refused[0] == self.step:
            self._roll_back(self._refused[1])
            return False
        values = {k: v.detach() for k, v in {"loss": loss, **dict(terms)}.items()}
        self._unread.append(_Unread(self.step, self._random, values))
        if loss.device.type in DEFERRED:
            return True
        fault = self._look()
        if fault is not None:
            self._roll_back(fault[1])
        return fault is None

    def _is_look_due(self, at: float) -> bool:
        """Whether losses are to be read after this step; several processes read them together."""
        done = self.step + 1
        is_timely = ranks.count() == 1 and time.monotonic() >= at
        return done % LOG_EVERY == 0 or done >= self.steps or is_timely

    def _look(self) -> tuple[_Unread, list[str]] | None:
        """Reads the losses of the steps since the last look; the first that is not finite."""
        unread, self._unread = self._unread, []
        flat = torch.stack([v.double() for entry in unread for v in entry.values.values()])
        found = iter(ranks.mean(flat.tolist()))
        for entry in unread:
            values = {name: next(found) for name in entry.values}
            if not math.isfinite(values["loss"]):
                names = [k for k, v in values.items() if not math.isfinite(v) and k != "loss"]
                return entry, names or ["loss"]
            self.last_values = values
        self._good = self._good[-1:]
        return None

    def _take_again(self, entry: _Unread, names: list[str]) -> None:
        """Goes back to before a step, which is to be refused."""
        self._good = [(at, state) for at, state in self._good if at <= entry.step]
        self._restore(self._good[-1][1])
        self.generator.set_state(entry.random)
        self.step, self.steps = entry.step, self._last
        self._refused = (entry.step, names)

    def _roll_back(self, names: list[str]) -> None:
        """Puts everything back to the last good state, with half the learning rate."""
        self._refused = None
        self.rollbacks += 1
        if self.rollbacks > RETRIES:
            raise TrainingError(
                f"{self.title}: the loss is not finite at step {self.step} "
                f"({', '.join(names)}), after {RETRIES} rollbacks with ever smaller steps: "
                f"{self.remedies.words(self.rate)}."
            )
        self._restore(self._good[-1][1])
        for group in self.optimizer.param_groups:
            group["lr"] /= 2
        self.mark()
        if self.checkpoints:
            self.checkpoints.progress.note(
                f"{self.title}: non-finite loss at step {self.step} ({', '.join(names)}); back to "
                f"the last good state, with half the learning rate"
            )
