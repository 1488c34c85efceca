"""What a run says about itself: its size, cost and place before it compiles, the figure when it ends."""

from pathlib import Path

import numpy as np

from jaxlab.model.families import parameters
from jaxlab.optim.batch_growth import size_at, walk
from jaxlab.quant.dot import arithmetic
from jaxlab.quant.recipes import OPERANDS
from jaxlab.train.build import Run, stages
from jaxlab.train.program import recipes


def header(run: Run, peak: float | None, peak_source: str) -> list[str]:
    """Lines for a person: model, training, batch, devices, compute."""
    c, mesh = run.config, run.program.mesh
    taken = walk({start: size.tokens for start, size in run.batches.items()}, c.tokens)
    tokens, steps = sum(s.size * s.steps for s in taken), sum(s.steps for s in taken)
    devices = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    peak_text = f"{peak / 1e12:,.3g} TFLOP/s ({peak_source})" if peak else peak_source
    lines = {
        "model": f"{model(run)}, {run.program.flops_per_token(c.batch.context) / 1e6:,.1f} MFLOPs a training token",
        "training": f"{tokens:,} tokens in {steps:,} steps, {run.train.epochs(tokens):.2f} epochs of {c.data.source}",
        "batch": batches(run),
        "devices": f"{mesh.size} x {mesh.devices.flat[0].device_kind} (mesh {devices}), peak {peak_text}",
        "optimiser": "given" if run.program.own.optimiser else c.optim.name,
    }
    if decoder := run.program.model:
        layers = "scanned" if decoder.scan else "unrolled"
        lines["compute"] = (
            f"{decoder.dtype}, attention {decoder.kernel.__name__}, layers {layers}, remat {decoder.remat}"
        )
    if cast := precision(run):
        lines["precision"] = cast
    if run.program.outer_loop:
        lines["rounds"] = run.program.outer_loop.describe(steps, c.diloco.outer_lr)
    if mesh.size > 1 and (names := run.program.unsharded):
        more = f" and {len(names) - 4:,} more, which --print_sharding lists" if len(names) > 4 else ""
        lines["unsharded"] = f"on every device, having no sharding rule: {', '.join(names[:4])}{more}"
    return [f"{name:10s}{text}" for name, text in lines.items()]


def model(run: Run) -> str:
    """Family and size of the run's model."""
    if run.program.model is None:
        return f"given, {run.program.parameters:,} parameters"
    m = run.program.model.c
    count = parameters(m)
    active = f", {count['active']:,} active" if m.num_experts else ""
    return f"{m.family}, {count['total']:,} parameters ({count['non_embedding']:,} without embeddings{active})"


def batches(run: Run) -> str:
    """What a batch is, from where on; of very many sizes the first and the last ones."""
    wanted, starts, texts = stages(run.config), list(run.batches), []
    for start in starts if len(starts) <= 20 else starts[:10] + starts[-10:]:
        size = run.batches[start]
        shape = run.program.shape(size)
        text = f"{size.tokens:,} tokens: {shape.replicas} replicas x {shape.micro_batches} micro-batches x "
        text += f"{shape.sequences} sequences of {size.context}"
        asked = size_at(wanted, start)
        text += f" ({asked:,} wanted)" if asked != size.tokens else ""
        texts.append(f"from {start:,} tokens {text}" if len(starts) > 1 else text)
    if len(starts) > 20:
        texts.insert(10, f"... {len(starts) - 20:,} more ...")
    return "; ".join(texts)


def precision(run: Run) -> str:
    """What is cast when, and where products run; nothing for a run that casts nothing."""
    q, device = run.config.quant, run.program.mesh.devices.flat[0]
    texts = []
    for start, rule in recipes(q).items():
        if rule.casts:
            cast = ", ".join(f"{p} {getattr(rule, p)}" for p in OPERANDS if getattr(rule, p).format)
            ways = {}
            for name, way in arithmetic(rule, q.fp8, device).items():
                ways.setdefault(way, []).append(name)
            how = "; ".join(f"{', '.join(names)} {way}" for way, names in ways.items())
            texts.append(f"from {start:,} tokens {cast} ({how})")
        elif texts:
            texts.append(f"from {start:,} tokens none")
    return "; ".join(texts)


def compiled(seconds: float, memory) -> str:
    """One line on the compiled step; memory: its memory analysis, per device."""
    peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    peak += memory.output_size_in_bytes - memory.alias_size_in_bytes
    return (
        f"compiled  in {seconds:.1f} s; a step needs {peak / 1e6:,.1f} MB a device, "
        f"{memory.temp_size_in_bytes / 1e6:,.1f} MB of it temporary"
    )


def figure(rows: list[dict], path: Path, title: str) -> None:
    """Loss of training batches and of the validation split, and the learning rate, against tokens, as PNG."""
    from matplotlib.figure import Figure  # a second to import

    train, held_out = ([r for r in rows if r["kind"] == kind] for kind in ("train", "eval"))
    millions, losses = np.array([[r["tokens"] / 1e6, r["loss"]] for r in train]).T
    fig = Figure(figsize=(7, 5), layout="constrained")
    top, bottom = fig.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    top.plot(millions, losses, color="C0", lw=0.6, alpha=0.3, label="training, each batch")
    edge = len(losses) // 50  # where the window does not fit, the mean is of few batches
    whole = slice(edge, len(losses) - edge)
    top.plot(millions[whole], smoothed(losses)[whole], color="C0", lw=1.5, label="training, smoothed")
    seen, scores = np.array([[r["tokens"] / 1e6, r["loss"]] for r in held_out]).T
    top.plot(seen, scores, "o", ms=5, color="C3", label="validation")
    top.annotate(
        f"{scores[-1]:.3f} nats/token\n{held_out[-1]['bits_per_byte']:.2f} bits/byte", (seen[-1], scores[-1]), (0, 24),
        textcoords="offset points", ha="right",
    )  # fmt: skip
    top.set(ylabel="loss (nats/token)", xlim=(0, millions[-1] * 1.02), ylim=limits(losses, scores))
    top.set_title(title.encode(errors="backslashreplace").decode(), parse_math=False)  # names of files, as they are
    top.legend(frameon=False)
    bottom.plot(millions, [r["lr"] for r in train], color="0.3")
    bottom.set(xlabel="training tokens (millions)", ylabel="learning rate")
    bottom.set_ylim(bottom=0)
    for axes in (top, bottom):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    fig.savefig(path, dpi=150)


def smoothed(values: np.ndarray) -> np.ndarray:
    """Mean over a window of a 25th of the values around each, shorter at both ends: it does not lag."""
    half = len(values) // 50
    total = np.concatenate(([0.0], np.cumsum(values)))
    reach = np.minimum(half, np.minimum(np.arange(len(values)), np.arange(len(values))[::-1]))
    i = np.arange(len(values))
    return (total[i + reach + 1] - total[i - reach]) / (2 * reach + 1)


def limits(losses: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """Limits of the loss axis that leave out the fall of the first steps."""
    low = min(losses.min(), scores.min())
    high = max(np.quantile(losses, 0.95), scores.max())
    margin = 0.05 * (high - low) + 0.01
    return low - margin, high + margin
