"""Where arrays live: the mesh, the table from parameter paths to mesh axes, and arrays built device by device."""

import atexit
import ctypes
import os
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxlab.config import InputError
from jaxlab.files import first_line

AXES = ("replica", "data", "tensor")
SILENCE_SECONDS = 30  # after which a process counts as lost to the others
JOIN_SECONDS = 50  # within which all processes must have come, where no cluster starts them
LOST = re.compile("gloo|nccl|coordination|heartbeat|barrier|socket|connection|unavailable|deadline", re.IGNORECASE)

# (parameter path, mesh axis of each of its own dimensions); first match wins, what none matches is on every device.
# `fsdp` is the data axis, or nothing when mesh.fsdp is off. Stacked layers and replicas add their axes in front.
RULES = (
    (r"(^|/)(embedding|position_embedding)$", ("tensor", "fsdp")),
    (r"(^|/)head$", ("fsdp", "tensor")),
    (r"experts/router/kernel$", ("fsdp", None)),
    (r"experts/(up|gate)/kernel$", ("tensor", "fsdp", None)),
    (r"experts/down/kernel$", ("tensor", None, "fsdp")),
    (r"(query|key|value|up|gate)/kernel$", ("fsdp", "tensor")),
    (r"(out|down)/kernel$", ("tensor", "fsdp")),
    (r"(query|key|value|up|gate)/bias$", ("tensor",)),
    (r"(out|down)/bias$", (None,)),
    (r"norm/(scale|bias)$", (None,)),
    (r"(/gain|_alpha|(^|/)s_\w+)$", (None,)),
    (r"(^|/)count$", ()),
)
STACK = re.compile(r"\bblocks(?:_\d+)?/")  # parameters below it are of many layers, along their first axis


def start(processes: str) -> bool:
    """Joins the processes of one run, before anything else touches a device; True in the one that speaks for all.

    processes: "" for a single process; "auto" where the cluster tells who is who (Cloud TPU pods, Slurm, GKE);
    "HOST:PORT,INDEX,COUNT" elsewhere, with the address of process 0. Raises InputError for anything else. From then on
    this process ends with one line on stderr and status 1 as soon as it hears that another one is lost.
    """
    if not processes:
        return True
    options = {"heartbeat_timeout_seconds": SILENCE_SECONDS, "shutdown_timeout_seconds": SILENCE_SECONDS}
    if processes != "auto":
        match = re.fullmatch(r"(\S+:\d+),(\d+),(\d+)", processes)
        port = int(match[1].rpartition(":")[2]) if match else 0
        if not match or int(match[2]) >= int(match[3]) or not 0 < port < 65_536:
            raise InputError(
                f"processes={processes!r}: must be auto, or HOST:PORT,INDEX,COUNT with PORT from 1 to 65535 and INDEX "
                "below COUNT"
            )
        options |= {"coordinator_address": match[1], "process_id": int(match[2]), "num_processes": int(match[3])}
        options |= {"initialization_timeout": JOIN_SECONDS}
    _end_when_another_is_lost()
    try:
        jax.distributed.initialize(**options)
    except ValueError as error:
        raise InputError(f"processes={processes}: {first_line(error)}") from error
    except Exception as error:  # of many kinds: no such host, a port in use, no cluster, nobody there in time
        fail(f"processes={processes}: {first_line(error)}")
    return jax.process_index() == 0


_several, _failing = threading.Event(), threading.Lock()


def _end_when_another_is_lost() -> None:
    """A process hears of it by an exception of a collective or a barrier, on whichever thread, or by JAX's client of
    the coordination service, which aborts the process. What C++ writes on stderr, pages of it, goes to a file that
    the line names; what Python writes arrives as before."""
    stderr, (pages, path) = os.dup(2), tempfile.mkstemp(prefix="jaxlab-", suffix=".stderr")
    os.dup2(pages, 2)
    atexit.register(os.unlink, path)
    sys.stderr = sys.__stderr__ = os.fdopen(stderr, "w", buffering=1)
    main, others = sys.excepthook, threading.excepthook
    sys.excepthook = lambda *raised: _fail_if_lost(raised[1]) or main(*raised)
    threading.excepthook = lambda raised: _fail_if_lost(raised.exc_value) or others(raised)
    ctypes.CDLL(None).signal(signal.SIGABRT, _aborted)
    _several.set()


def _fail_if_lost(error: BaseException) -> None:
    if LOST.search(str(error)):
        fail(first_line(error))


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _aborted(number: int) -> None:
    del number
    fail("no connection to the coordination service")


def fail(message: str) -> int:
    """Prints the one line that says why this process fails, and returns its exit status, 1. One of several processes
    ends there and then: to leave in order it would wait for the others, and they may not be there."""
    several, message = _several.is_set(), " ".join(message.split())
    if several:
        _failing.acquire()  # never released: the first line is the only one
        if LOST.search(message):
            message = f"another process of the run is lost, or did not come; start all of them again ({message})"
        message = f"{message}; what the libraries wrote is in {os.path.realpath('/proc/self/fd/2')}"
    print(f"error: {message}", file=sys.stderr, flush=True)
    if several:
        sys.stdout.flush()
        os._exit(1)
    return 1


def mesh(replica: int, data: int, tensor: int, devices: list | None = None) -> Mesh:
    """Mesh of the devices (default: all of jax.devices()), or of the first replica * data * tensor of them.

    data = -1 takes what is left. Several TPU slices, between which the network is slow, are apart along `replica`, or
    along `data` where replicas do not share them out. Raises InputError where the devices do not suffice or do not
    divide.
    """
    devices = jax.devices() if devices is None else devices
    if data == -1:
        data = len(devices) // (replica * tensor)
        if data * replica * tensor != len(devices) or not data:
            raise InputError(f"mesh.replica={replica} x mesh.tensor={tensor}: must divide the {len(devices)} devices")
    needed = replica * data * tensor
    if needed > len(devices) or data < 1:
        raise InputError(f"mesh {replica} x {data} x {tensor}: needs {needed} devices, {len(devices)} available")
    shape, devices = (replica, data, tensor), devices[:needed]
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return jax.make_mesh(shape, AXES, devices=devices, axis_types=(AxisType.Auto,) * 3)
    if replica % slices and data % slices:
        raise InputError(f"mesh {replica} x {data} x {tensor}: the {slices} slices divide neither replica nor data")
    between = (1, slices, 1) if replica % slices else (slices, 1, 1)
    within = [size // apart for size, apart in zip(shape, between, strict=True)]
    grid = mesh_utils.create_hybrid_device_mesh(within, between, devices)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 3)


def batch_axes(replicas: int):
    """Mesh axes of (the replica axis, the sequences of one replica): with one replica both axes carry its data."""
    return ("replica", "data") if replicas > 1 else (None, ("replica", "data"))


def path_name(path) -> str:
    """'opt_state/1/mu/blocks/ffn/up/kernel' from a tree path."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def state_shardings(tree, mesh: Mesh, *, replicas: int, fsdp: bool, per_replica: bool = True, params=None):
    """NamedSharding of every leaf of a training state whose leaves all have a leading replica axis, or none has. A leaf
    that has no rule (see `without_rule`) is on every device.

    params: the state's parameters [M, ...], or their shapes; by default the tree itself. Raises InputError for a leaf
    that the mesh axes of its rule do not divide.
    """
    first = (batch_axes(replicas)[0],) if per_replica else ()
    shapes = _shapes(tree if params is None else params)

    def sharding(path, leaf):
        name = path_name(path)
        own = tuple((("data" if fsdp else None) if a == "fsdp" else a) for a in _rule(name, leaf.shape, shapes) or ())
        spec = (*first, *(None,) * (leaf.ndim - len(first) - len(own)), *own)
        for size, axis in zip(leaf.shape, spec, strict=True):
            if axis and size % mesh.shape[axis]:
                shape = leaf.shape[len(first) :]
                raise InputError(f"mesh.{axis}={mesh.shape[axis]}: does not divide parameter {name} of shape {shape}")
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def without_rule(tree, params) -> list[str]:
    """Paths of the leaves of a training state that have no rule: those of parameters that no pattern matches, or that
    have another number of axes than ours, as other models' may; and those of an optimiser's state that have not the
    shape of the parameter whose path they end with, as factors of second moments. params as for `state_shardings`."""
    shapes = _shapes(params)
    leaves = [(path_name(path), leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
    return [name for name, shape in leaves if _rule(name, shape, shapes) is None]


def _shapes(params) -> dict[str, tuple]:
    """{path: shape} of the parameters [M, ...] of a single model."""
    return {path_name(path): leaf.shape[1:] for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def _rule(name: str, shape: tuple, shapes: dict[str, tuple]) -> tuple | None:
    """Mesh axes of the last dimensions of a leaf, None where it has no rule. shapes: of the parameters, by path."""
    own = next((axes for pattern, axes in RULES if re.search(pattern, name)), None)
    if not own:
        return own
    name = re.sub(rf"({STACK.pattern})\d+/", r"\1", name)  # of one layer's leaf, the path of the stack's
    parts = name.split("/")
    parameter = next((p for i in range(len(parts)) if (p := shapes.get("/".join(parts[i:])))), ())
    as_in_ours = len(parameter) == len(own) + bool(STACK.search(name))
    return own if as_in_ours and shape[-len(own) :] == parameter[-len(own) :] else None


def unreplicated(shardings):
    """The same shardings, with the leading replica axis on all devices."""
    return jax.tree.map(lambda s: NamedSharding(s.mesh, PartitionSpec(None, *s.spec[1:])), shardings)


def table(shardings) -> list[tuple[str, str]]:
    """(path, spec) of every leaf, for a person to read."""
    return [(path_name(p), str(tuple(s.spec))) for p, s in jax.tree_util.tree_leaves_with_path(shardings)]


def constrainer(mesh: Mesh, axes) -> Callable:
    """Pins [b, ...] activations to mesh axes; without it a compiler may compute every sequence on every device, which
    only per-device shapes show."""

    def constrain(x):
        spec = PartitionSpec(axes, *(None,) * (x.ndim - 1))
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

    return constrain


def global_array(shape, sharding: NamedSharding, read: Callable[[tuple], np.ndarray]) -> jax.Array:
    """Global array of which this process reads only its devices' parts: read(index) -> that slice."""
    with jax.transfer_guard_host_to_device("allow"):
        return jax.make_array_from_callback(shape, sharding, read)


def replicated(mesh: Mesh, value) -> jax.Array:
    """A small host array on every device."""
    value = np.asarray(value)
    return global_array(value.shape, NamedSharding(mesh, PartitionSpec()), lambda index: value[index])
