"""Training state on disk: Orbax checkpoints with checksums of our own.

Orbax returns bit-rotted data without an error and does not fall back from a broken latest step, so every array's
checksum is stored beside it, and a checkpoint that does not load or does not agree is left for the one before it.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from dit_video.core.cluster import anywhere
from dit_video.core.errors import BadInput, DitVideoError, Partial
from dit_video.core.log import log
from dit_video.weights.names import keys_of
from dit_video.weights.sums import checksums

SEPARATOR = "/"
MOST = 64  # steps that processes tell each other


def flatten(tree: Any) -> dict[str, Any]:
    """One level: `{"params/dit/blocks/up/kernel": array}`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {SEPARATOR.join(keys_of(path)): leaf for path, leaf in leaves}


def _digest(about: Mapping[str, Any]) -> str:
    """Of plain data, as it is after a way through JSON."""
    return hashlib.sha256(json.dumps(json.loads(json.dumps(about)), sort_keys=True).encode()).hexdigest()


class Broken(DitVideoError):
    """A checkpoint that does not load, or whose arrays are not those that were saved; exit code 2."""

    exit_code = BadInput.exit_code


class Checkpoints:
    """Steps of a run, the newest `keep` and multiples of `every`; None to read them, which removes nothing.
    Saving is asynchronous; a copy is taken before it returns. All processes of a run call the same functions and use
    the same steps: what one of them cannot read is broken for every one. A reader is its process's own.

    A save that fails, on a full disk say, is told in the log and leaves the others as they are. Of several processes it
    ends the run, with `Partial`: the others wait in the midst of it for the one that failed.
    """

    def __init__(self, path: str | os.PathLike[str], keep: int | None = None, every: int = 0):
        import orbax.checkpoint as ocp

        self.path, self.keep, self.every, self.ocp = Path(path).absolute(), keep, every, ocp
        self.damaged: set[int] = set()  # steps that `latest` could not use
        self.together = keep is not None and jax.process_count() > 1
        self._open()

    def _open(self) -> None:
        # What an unfinished save has left goes, too.
        clean = self.keep is not None
        stays = {"max_to_keep": self.keep, "keep_period": self.every or None}
        options = self.ocp.CheckpointManagerOptions(**stays, cleanup_tmp_directories=clean)
        if not self.together and jax.process_count() > 1:
            here = jax.process_index()
            options.create = False  # it would wait for the others
            options.multiprocessing_options = self.ocp.options.MultiprocessingOptions(here, {here}, f"process {here}")
        self.manager = self.ocp.CheckpointManager(self.path, options=options, item_names=("state", "about"))

    def steps(self) -> list[int]:
        """Steps that were written to the end, by what stands on the disk."""
        self.manager.reload()
        return sorted(int(s) for s in self.manager.all_steps())

    def _known(self) -> list[int]:
        """The steps that every process finds, of the newest."""
        if not self.together:
            return self.steps()
        found = multihost_utils.process_allgather(np.resize(np.int32([*reversed(self.steps()), *[-1] * MOST]), MOST))
        return sorted(set.intersection(*(set(row) for row in np.asarray(found).tolist())) - {-1})

    def save(self, step: int, state: Any, about: dict[str, Any], wait: bool = False) -> None:
        """Saves a tree of arrays and plain data about it. A step that is there already stays as it is.

        `wait` says that it is the last save: raises `Partial` when the step is not there in the end.
        """
        self.settle()
        if step not in self.manager.all_steps():
            flat = flatten(state)
            if jax.default_backend() == "cpu":
                # The next step is given the state's own buffers to write into, and here Orbax writes from them. From an
                # accelerator it has copied them to the host when `save` comes back.
                flat = jax.tree.map(jnp.copy, flat)
            sums = checksums(flat)
            shapes = {name: list(x.shape) for name, x in flat.items()}
            about = about | {"step": step, "checksums": sums, "shapes": shapes}
            about |= {"sha256": _digest(about)}
            args = self.ocp.args
            args = args.Composite(state=args.PyTreeSave(flat), about=args.JsonSave(about))
            with self._surviving():
                self.manager.save(step, args=args, force=True)
        if wait:
            self.settle()
            if step not in self.steps():
                raise Partial(
                    f"step {step} could not be saved in {self}; the log says why. Make room; the same command goes on "
                    "from the newest step."
                )

    def settle(self) -> None:
        """Waits for what is being written."""
        with self._surviving():
            self.manager.wait_until_finished()

    @contextmanager
    def _surviving(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            why = (str(error) or type(error).__name__).splitlines()[0]
            if jax.process_count() > 1:
                raise Partial(
                    f"a checkpoint could not be saved in {self.path}: {why}. Those that are there stay. Make room, or "
                    "see to what it says; the same command, on all processes, goes on from the newest."
                ) from error
            with suppress(Exception):
                self.manager.close()
            self._open()
            log.error("a checkpoint could not be saved: %s. Those of %s stay; the next save tries again", why, self)

    def __str__(self) -> str:
        return f"{self.path} (steps: {', '.join(map(str, self.steps())) or 'none'})"

    def about(self, step: int) -> dict[str, Any]:
        """The plain data of a step. Raises `Broken`, also where it is not what was saved."""
        found = dict(self._read(step, "about", self.ocp.JsonCheckpointHandler(), self.ocp.args.JsonRestore()))
        told = found.pop("sha256", None)  # None: older checkpoints have none
        if told != _digest(found) if told else not {"step", "checksums", "shapes"} <= set(found):
            raise Broken(f"step {step} of {self.path} is damaged: what is told about it lacks its checksum")
        return found

    def _read(self, step: int, item: str, handler: Any, args: Any) -> Any:
        """An item of a step, by its handler: the manager's own way ends at a barrier, where those that have read wait
        for one that could not."""
        found = failure = None
        try:
            found = handler.restore(self.path / str(step) / item, args=args)
        except Exception as error:
            failure = error
        failed = failure is not None
        if anywhere(failed) if self.together else failed:
            why = f"{failure or 'by another process'}".splitlines()[0].partition(" See full TensorStore")[0].rstrip(".")
            raise Broken(f"step {step} of {self.path} cannot be read: {why}") from failure
        return found

    def restore(self, step: int, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
        """Some or all arrays of a step, laid out by the shardings in `wanted`; NumPy's where that has none. Raises
        `Broken` when they do not load or when a checksum disagrees."""
        args, about = self.ocp.args, self.about(step)
        how = self.ocp.checkpoint_utils.construct_restore_args(dict(wanted))
        arrays = args.PyTreeRestore(dict(wanted), restore_args=how, partial_restore=True)
        flat = dict(self._read(step, "state", self.ocp.PyTreeCheckpointHandler(), arrays))
        wrong = [name for name, x in checksums(flat).items() if x != about["checksums"].get(name)]
        if wrong:
            raise Broken(
                f"step {step} of {self.path} is damaged: {wrong[0]} and {len(wrong) - 1} more lack their checksum"
            )
        return flat

    def latest(
        self, use: Callable[[int], Any], step: int | None = None, before: int | None = None
    ) -> tuple[int, Any] | None:
        """`(step, use(step))` for the newest step that is not broken, each broken one named in the log; None when there
        is no checkpoint. With `step` that one and no other, with `before` only older ones than that. Raises `Broken`,
        which says what to do, when there are some and none is whole."""
        self.settle()
        steps = [s for s in self._known() if before is None or s < before]
        if step is not None:
            if step not in steps:
                raise BadInput(f"{self.path} has no step {step}. It has {', '.join(map(str, steps)) or 'none'}.")
            steps = [step]
        for candidate in reversed(steps):
            try:
                return candidate, use(candidate)
            except Broken as error:
                if step is not None:
                    raise Broken(f"{error}. Give another step, or none for the newest that can be read.") from error
                self.damaged.add(candidate)
                log.warning("%s; trying the one before", error)
        if steps:
            raise Broken(
                f"{self.path}: none of the steps {', '.join(map(str, steps))} can be read; the log says why of each. "
                "Copy them again if they are whole elsewhere. To train from the start: --resume never, which keeps "
                "these files under another name, or another --workdir."
            )
        return None

    def forget_after(self, step: int) -> None:
        """Removes the steps beyond `step`: a run that goes on from an earlier step makes them anew. Those that `latest`
        found damaged keep their files, under a name that says so."""
        self.settle()
        for later in [s for s in self._known() if s > step]:
            if later not in self.damaged:
                log.info("removing step %d: the run goes on from step %d", later, step)
                self.manager.delete(later)
                continue
            aside = self.path / f"{later}.damaged.{time.time_ns()}"
            if jax.process_index() == 0:
                log.warning("step %d is damaged; its files are now %s", later, aside)
                (self.path / str(later)).rename(aside)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("steps were forgotten")
        self.manager.reload()

    def close(self) -> None:
        """Waits for what is being written."""
        self.settle()
        self.manager.close()
