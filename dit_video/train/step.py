"""One pure training step, and where its state lies on a mesh."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, PRNGKeyArray

from dit_video.core.errors import BadInput
from dit_video.core.mesh import Axis, Rules, batch_sharding, names_of, shardings, ways
from dit_video.train.metrics import count_flops
from dit_video.weights.names import keys_of

Loss = Callable[[Any, Any, PRNGKeyArray], tuple[Float[Array, ""], dict[str, Array]]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """All that changes. Donated to the step."""

    step: Int[Array, ""]
    params: Any  # {"dit": ..., "text": ...}: nested dicts of float32 arrays
    ema: tuple[Any, ...]  # one tree like `params` for each decay
    opt: optax.OptState


@dataclass(frozen=True)
class Trained:
    """The modules of an objective without their arrays."""

    graphs: dict[str, nnx.GraphDef]
    abstract: dict[str, nnx.State]  # shapes, and metadata `axes`
    rules: Rules  # that they were made with

    def modules(self, params: dict[str, Any]) -> dict[str, Any]:
        """The modules with these parameters."""
        return {name: nnx.merge(graph, params[name]) for name, graph in self.graphs.items()}

    def shardings(self, mesh: Mesh, rules: Rules) -> dict[str, Any]:
        """A NamedSharding for every parameter."""
        return {name: shardings(state, mesh, rules) for name, state in self.abstract.items()}


def trained(objective: Any, rules: Rules) -> Trained:
    """Builds the modules of an objective without a single array."""

    def build() -> dict[str, nnx.Module]:
        return objective.modules(rules, nnx.Rngs(0))

    modules = nnx.eval_shape(build)
    parts = {name: nnx.split(module, nnx.Param) for name, module in modules.items()}
    graphs, states = ({name: part[i] for name, part in parts.items()} for i in (0, 1))
    return Trained(graphs, states, rules)


def initial_params(objective: Any, rules: Rules, key: PRNGKeyArray) -> dict[str, Any]:
    """Random parameters. Inside `jax.jit` the key must be an argument: of a constant one the compiler would compute the
    random numbers itself, for minutes."""
    modules = objective.modules(rules, nnx.Rngs(key))
    return {name: nnx.to_pure_dict(nnx.state(module, nnx.Param)) for name, module in modules.items()}


def loss_of(objective: Any, parts: Trained, frozen: Any = None) -> Loss:
    """loss(params, batch, key) of an objective. `frozen`: the arrays that it uses and does not learn. Inside `jax.jit`
    they must be arguments of what is compiled, or they would be constants in it."""
    given = {} if frozen is None else {"frozen": frozen}
    return lambda params, batch, key: objective.loss(parts.modules(params) | given, batch, key, parts.rules)


def model_flops(objective: Any, rules: Rules, params: Any, batch: Any, key: Any, frozen: Any = None) -> float:
    """Of a step over all devices: three times the forward pass, nothing for what is computed again; or what the
    objective's own `flops` says. Arrays may be shapes. Traced without a mesh, whose programs are of a part of the
    heads, and without kernels, whose inside is not seen."""
    if (own := getattr(objective, "flops", None)) is not None:
        return own(batch)
    plain = objective
    if getattr(objective, "dit", None) is not None:
        plain = replace(objective, dit=replace(objective.dit, attention="xla"))
    loss = loss_of(plain, trained(plain, rules), frozen)
    return 3 * count_flops(lambda *args: loss(*args)[0], params, batch, key)


def gradients(loss: Loss, accumulate: int = 1) -> Callable[[Any, Any, PRNGKeyArray], tuple[Any, Any]]:
    """(params, batch, key) -> ((loss, metrics), gradients), the batch run in `accumulate` parts one after the other.

    The mean over parts: right for losses that are means over the clips of a batch. Each part has its own key.
    """
    whole = jax.value_and_grad(loss, has_aux=True)
    if accumulate == 1:
        return whole

    def in_parts(params: Any, batch: Any, key: PRNGKeyArray) -> tuple[Any, Any]:
        # Part i takes every `accumulate`-th clip, so on a mesh every part is spread over all devices as the batch was.
        parts = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, accumulate, *x.shape[1:]), 1, 0), batch)

        def one(total: Any, xs: tuple[Any, Array]) -> tuple[Any, None]:
            part, i = xs
            return jax.tree.map(jnp.add, total, whole(params, part, jax.random.fold_in(key, i))), None

        shapes = jax.eval_shape(whole, params, jax.tree.map(lambda x: x[0], parts), key)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        total, _ = jax.lax.scan(one, zeros, (parts, jnp.arange(accumulate)))
        return jax.tree.map(lambda x: x / accumulate, total)

    return in_parts


def ema_decay(decay: float, step: Int[Array, ""]) -> Float[Array, ""]:
    """Decay at a step: short at first, so that an average of few steps does not remember the random start."""
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step))


def make_gradients(loss: Loss, accumulate: int = 1) -> Callable[..., tuple[Any, dict[str, Array]]]:
    """(params, step, batch, key) -> (gradients, metrics): the half of a step that knows the shapes of the batch.

    The key is folded with the step, so that a checkpoint and the seed replay any step.
    """
    differentiate = gradients(loss, accumulate)

    def half(params: Any, step: Int[Array, ""], batch: Any, key: PRNGKeyArray) -> tuple[Any, dict[str, Array]]:
        (value, metrics), grads = differentiate(params, batch, jax.random.fold_in(key, step))
        return grads, {**metrics, "loss": value}

    return half


def make_update(
    optimizer: optax.GradientTransformation, decays: tuple[float, ...]
) -> Callable[[TrainState, Any, dict[str, Array]], tuple[TrainState, dict[str, Array]]]:
    """(state, gradients, metrics) -> (state, metrics): the half that is the same for every shape of batch.

    A step whose loss or gradient is not finite changes nothing but the counter: `skipped` is 1.
    """

    def half(state: TrainState, grads: Any, metrics: dict[str, Array]) -> tuple[TrainState, dict[str, Array]]:
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(norm) & jnp.isfinite(metrics["loss"])
        updates, opt = optimizer.update(grads, state.opt, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = tuple(
            optax.incremental_update(params, average, 1 - ema_decay(decay, state.step))
            for decay, average in zip(decays, state.ema, strict=True)
        )
        new = replace(state, params=params, ema=ema, opt=opt)
        new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
        return replace(new, step=state.step + 1), {**metrics, "grad_norm": norm, "skipped": 1.0 - finite}

    return half


def make_step(
    loss: Loss, optimizer: optax.GradientTransformation, decays: tuple[float, ...], accumulate: int = 1
) -> Callable[[TrainState, Any, PRNGKeyArray], tuple[TrainState, dict[str, Array]]]:
    """step(state, batch, key) -> (state, metrics), pure. The loop compiles its halves apart: every shape of batch needs
    the first, all share the second, and clipping by the global norm has all gradients in memory between them anyway."""
    first, second = make_gradients(loss, accumulate), make_update(optimizer, decays)

    def step(state: TrainState, batch: Any, key: PRNGKeyArray) -> tuple[TrainState, dict[str, Array]]:
        return second(state, *first(state.params, state.step, batch, key))

    return step


def compiled_halves(
    objective: Any,
    parts: Trained,
    optimizer: optax.GradientTransformation,
    where: TrainState,
    decays: tuple[float, ...],
    accumulate: int = 1,
    precision: str | None = None,
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The two programs of a step, to be called or lowered: gradients(frozen, params, step, batch, key), and
    update(state, gradients, metrics), which is given the state to write into. precision: of matrix products, None: as
    JAX is told."""

    def products() -> AbstractContextManager[Any]:
        return nullcontext() if precision is None else jax.default_matmul_precision(precision)

    def first(frozen: Any, *args: Any) -> Any:
        with products():
            return make_gradients(loss_of(objective, parts, frozen), accumulate)(*args)

    def second(*args: Any) -> Any:
        with products():
            return make_update(optimizer, decays)(*args)

    return (
        jax.jit(first, out_shardings=(where.ema[0], None)),
        jax.jit(second, donate_argnums=0, out_shardings=(where, None)),
    )


def spread(where: NamedSharding, shape: tuple[int, ...], batch: Axis) -> NamedSharding:
    """Of what lies whole on every device the first axis that the mesh axes of the batch divide is spread over them: of
    a stack of layers each gets some, which Muon orthogonalises without a word to the others. What is split already
    stays as it is: between two layouts of a stack the compiler would gather all of it."""
    mesh, spec = where.mesh, (*where.spec, *(None,) * (len(shape) - len(where.spec)))
    free = tuple(name for name in names_of(batch) if mesh.shape[name] > 1)
    if free and all(ways(axis, mesh) == 1 for axis in spec):
        for i, size in enumerate(shape):
            if size % ways(free, mesh) == 0:
                return NamedSharding(mesh, P(*spec[:i], free, *spec[i + 1 :]))
    return where


def state_shardings(state: TrainState, params: Any, mesh: Mesh, rules: Rules) -> TrainState:
    """Where everything lies: parameters as `params` says, averages and moments as those, but for what is whole on every
    device: that is `spread` (ZeRO, Rajbhandari et al. 2020, arXiv 1910.02054, stage 1). The rest on every device.

    state: shapes of the whole state. What belongs to a parameter is told by its path, which ends with that of the
    parameter.
    """
    where = {keys_of(path): s for path, s in jax.tree_util.tree_flatten_with_path(params)[0]}
    shapes = {keys_of(path): x.shape for path, x in jax.tree_util.tree_flatten_with_path(state.params)[0]}

    def one(path: Any, leaf: Any) -> NamedSharding:
        names = keys_of(path)
        for start in range(len(names)):
            if names[start:] in where and shapes[names[start:]] == leaf.shape:
                return spread(where[names[start:]], leaf.shape, rules.batch)
        return NamedSharding(mesh, P())

    return replace(jax.tree_util.tree_map_with_path(one, state), params=params)


def _fresh(params: Any, optimizer: optax.GradientTransformation, averages: int) -> TrainState:
    ema = tuple(jax.tree.map(jnp.copy, params) for _ in range(averages))
    return TrainState(jnp.zeros((), jnp.int32), params, ema, optimizer.init(params))


def layout(
    objective: Any,
    parts: Trained,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    rules: Rules,
    decays: tuple[float, ...],
) -> tuple[TrainState, TrainState]:
    """Shapes of the state, and the sharding of each array in it."""
    shapes = jax.eval_shape(lambda: _fresh(initial_params(objective, rules, jax.random.key(0)), optimizer, len(decays)))
    return shapes, state_shardings(shapes, parts.shardings(mesh, rules), mesh, rules)


def initial_state(
    objective: Any,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    rules: Rules,
    where: TrainState,
    shapes: TrainState,
    *,
    seed: int,
    decays: tuple[float, ...],
    start: dict[str, Any] | None = None,
) -> TrainState:
    """The state at step 0, laid out on the mesh. `start`: parameters to begin with. `where`, `shapes`: of `layout`.

    Raises `BadInput` when `start` has other names or shapes than the objective's modules.
    """
    with on(mesh):
        if start is None:
            # Compiled for one run: on a CPU the compiler's expensive passes cost more than they save.
            cpu = mesh.devices.flat[0].platform == "cpu"
            quick = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True} if cpu else None
            make = jax.jit(
                lambda key: initial_params(objective, rules, key), out_shardings=where.params, compiler_options=quick
            )
            params = make(jax.random.key(seed))
        else:
            _same_shapes(shapes.params, start)
            # A copy: the step is given these buffers to write into, and the caller may still need them.
            params = jax.tree.map(lambda x, w: jax.device_put(np.array(x, np.float32), w), start, where.params)
        return jax.jit(lambda p: _fresh(p, optimizer, len(decays)), out_shardings=where)(params)


def _same_shapes(wanted: Any, given: Any) -> None:
    want = {"/".join(keys_of(p)): x.shape for p, x in jax.tree_util.tree_flatten_with_path(wanted)[0]}
    have = {"/".join(keys_of(p)): np.shape(x) for p, x in jax.tree_util.tree_flatten_with_path(given)[0]}
    wrong = [f"{n}: {have.get(n, 'missing')} instead of {want.get(n, 'nothing')}" for n in sorted({*want, *have})
             if want.get(n) != have.get(n)]  # fmt: skip
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise BadInput(f"the weights to start from do not fit the experiment: {'; '.join(wrong[:5])}{more}")


def on(mesh: Mesh) -> AbstractContextManager:
    """The mesh in force, for tracing; one device needs none."""
    return jax.set_mesh(mesh) if mesh.size > 1 else nullcontext()


def place(batch: Any, mesh: Mesh, rules: Rules) -> Any:
    """This process's part of a batch as global arrays, split along the first axis. Raises `BadInput` when the batch
    does not divide over the mesh."""
    where = batch_sharding(mesh, rules)
    try:
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(where, np.asarray(x)), batch)
    except ValueError as error:
        sizes = {len(x) for x in jax.tree.leaves(batch)}
        raise BadInput(f"a batch of {sizes} clips does not divide over the mesh {dict(mesh.shape)}: {error}") from error
