"""The guard over steps that change nothing because their loss or gradient is not finite."""

from typing import Any

import jax

from dit_video.core.errors import NonFinite
from dit_video.core.log import log


class Guard:
    """Says when so many steps in a row were skipped that the run shall go back, and when that has not helped.

    A step is looked at when the next one is on its way, so that the host never waits for it, and whatever is decided
    depends on steps alone: a run that was killed decides the same. `state` is stored with a checkpoint.
    """

    def __init__(self, patience: int, rollbacks: int, state: dict[str, int] | None = None):
        self.patience, self.allowed, self.waiting = patience, rollbacks, None
        given = state or {}
        self.bad: int = given.get("bad", 0)  # steps in a row
        self.rollbacks: int = given.get("rollbacks", 0)  # of the whole run
        self.fruitless: int = given.get("fruitless", 0)  # since the run last got further than `furthest`
        self.furthest: int = given.get("furthest", 0)  # the last step from which it went back

    def see(self, step: int, skipped: Any) -> bool:
        """Takes the mark of `step`, 1 where it was skipped. Whether `patience` steps in a row before it were."""
        self._look()
        self.waiting = (step, skipped)
        return self.bad >= self.patience

    def _look(self) -> None:
        if self.waiting is None:
            return
        (step, skipped), self.waiting = self.waiting, None
        if float(jax.device_get(skipped)):
            self.bad += 1
            log.warning("step %d was skipped: its loss or gradient is not finite", step)
            return
        self.bad = 0
        if step > self.furthest:
            self.fruitless = 0

    def state(self) -> dict[str, int]:
        """Plain data, of all steps seen."""
        self._look()
        names = ("bad", "rollbacks", "fruitless", "furthest")
        return {name: getattr(self, name) for name in names}

    def first_bad(self, step: int) -> int:
        """The first of the skipped steps before `step`, from which the run now goes back. Raises `NonFinite` when it
        went back as often as is allowed without getting further."""
        what = f"loss or gradient is NaN or infinite for {self.bad} steps up to step {step - 1}"
        if self.fruitless >= self.allowed:
            tried = f", after going back {self.fruitless} times with other data" if self.fruitless else ""
            raise NonFinite(
                f"{what}{tried}. The last checkpoint stays. "
                "Lower optimizer.lr, or look at the data and at the weights given to --init."
            )
        first = step - self.bad
        self.rollbacks, self.fruitless = self.rollbacks + 1, self.fruitless + 1
        self.furthest, self.bad, self.waiting = max(self.furthest, step - 1), 0, None
        log.warning("%s", what)
        return first
