"""The model class `jaxlab` for lm-evaluation-harness, which runs the harness's tasks on the checkpoint of a run."""

import jax
import jax.numpy as jnp
import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from jaxlab.config import InputError
from jaxlab.data.store import load_tokenizer
from jaxlab.evaluate.choice import Choice, Layout, batches
from jaxlab.files import local, reading
from jaxlab.interop.workdir import newest_params, recorded_config
from jaxlab.model.decoder import Decoder
from jaxlab.train.build import build

NEW_TOKENS = 256  # tokens to generate if a task gives no number


def reader(model: Decoder, ids: int):
    """read(params, tokens [n, b, L], positions [n, T], targets [n, T]) -> (log-probabilities, likeliest ids) [n, T].

    positions index the b L tokens of a group; both results are about the token that follows there. Nats, float32. Only
    the first `ids` entries of the model's vocabulary are tokens; the rest is padding and never returned as likeliest.
    """

    def read(params, tokens, positions, targets):
        n, b, length = tokens.shape
        hidden, head = model.apply({"params": params}, tokens.reshape(n * b, length), method="features")
        hidden = jnp.take_along_axis(hidden.reshape(n, b * length, -1), positions[..., None], axis=1)
        logits = jnp.einsum("ntd,vd->ntv", hidden, head, preferred_element_type=jnp.float32)
        log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)
        return log_probs[..., 0], jnp.argmax(logits[..., :ids], axis=-1)

    return read


@register_model("jaxlab")
class JaxlabLM(TemplateLM):
    """The newest checkpoint of a run: --model jaxlab --model_args workdir=runs/demo.

    batch_size: number of full-length sequences in a batch; a batch holds more sequences if they are shorter. Generation
    is greedy. The harness passes `device` and `max_batch_size`, which are ignored: JAX chooses the device.
    """

    def __init__(self, workdir: str = "", batch_size: int | str = 8, device=None, max_batch_size=None, **unknown):
        super().__init__()
        for name, value in unknown.items():
            raise InputError(f"model_args: {name}={value} is unknown; allowed: workdir, batch_size")
        if not str(batch_size).isdecimal() or not int(batch_size):
            raise InputError(f"batch_size={batch_size}: must be a whole number above 0")
        workdir = local(workdir, "model_args: workdir")
        config = recorded_config(workdir)
        run = build(config)
        model = run.program.model
        self._params = newest_params(run, workdir)
        self._tokenizer = load_tokenizer(config.data.store)
        self._layout = Layout(model.c.context, groups=1, tokens=int(batch_size) * model.c.context, unit=32, chunk=1)
        # Default attention and no sharding: takes any number of sequences of any length on any device.
        decoder = Decoder(model.c, dtype=model.dtype, scan=model.scan)
        self._read = jax.jit(reader(decoder, self._tokenizer.vocab_size))

    @property
    def eot_token_id(self) -> int:
        """The id between documents in training; also the context of a text that has none."""
        return self._tokenizer.eos

    @property
    def max_length(self) -> int:
        return self._layout.context

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs) -> list[int]:
        with reading(f"the text {string!r:.60}"):
            return self._tokenizer.encode([string])[0].tolist()

    def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, **kwargs) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, whether greedy decoding yields it) of each request (_, context, continuation)."""
        choices = [self._choice(context, continuation) for _, context, continuation in requests]
        total, greedy = np.zeros(len(choices)), np.ones(len(choices), bool)
        for tokens, positions, targets, owners in batches(choices, self._layout, self._layout.scored(choices)):
            log_probs, likeliest = jax.device_get(self._read(self._params, tokens, positions, targets))
            scored = owners >= 0
            np.add.at(total, owners[scored], log_probs[scored].astype(np.float64))
            np.logical_and.at(greedy, owners[scored], (likeliest == targets)[scored])
        results = list(zip(total.tolist(), greedy.tolist(), strict=True))
        for (key, _, _), result in zip(requests, results, strict=True):
            if key is not None:
                self.cache_hook.add_partial("loglikelihood", key, result)
        return results

    def _choice(self, context: list[int], continuation: list[int]) -> Choice:
        if not 0 < len(continuation) <= self.max_length:
            raise InputError(
                f"a continuation of {len(continuation)} tokens cannot be scored; allowed: 1 to the model's context of "
                f"{self.max_length}"
            )
        ids = np.array((context + continuation)[-(self.max_length + 1) :], np.int32)
        return Choice(ids[:-1], ids[-len(continuation) :], text="", cut=0)

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, which the harness cuts into windows of the model's context."""
        owners, windows = [], []
        for number, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            for pair in get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, context_len=1):
                owners.append(number)
                windows.append((None, *make_disjoint_window(pair)))
        total = np.zeros(len(requests))
        np.add.at(total, np.array(owners, int), [log_prob for log_prob, _ in self._loglikelihood_tokens(windows)])
        return total.tolist()

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """Greedy continuations up to a stop string, the end-of-text id or max_gen_toks tokens."""
        return [self._generate(*request.args) for request in requests]

    def _generate(self, context: str, options: dict) -> str:
        with reading(f"the options {options!r:.60}"):
            options = normalize_gen_kwargs(options, min(NEW_TOKENS, self.max_length // 2))
        if options["do_sample"]:
            raise InputError("do_sample=True: only greedy generation is implemented")
        most, stops = options["max_gen_toks"], options["until"]
        if not all(isinstance(stop, str) for stop in stops):
            raise InputError(f"until={stops!r:.60}: must be texts")
        stops = [stop for stop in stops if stop]  # an empty one would match everywhere
        if not 0 <= most < self.max_length:
            raise InputError(f"max_gen_toks={most}: must be from 0 to below the model's context, {self.max_length}")
        ids = self.tok_encode(context)[-(self.max_length - most) :] or [self.eot_token_id]
        start = len(ids)
        tokens = np.zeros((1, 1, self._layout.length(start + most)), np.int32)
        tokens[0, 0, :start] = ids
        text = ""
        for end in range(start, start + most):
            position = np.array([[end - 1]])
            tokens[0, 0, end] = jax.device_get(self._read(self._params, tokens, position, position * 0)[1])[0, 0]
            if tokens[0, 0, end] == self.eot_token_id:
                break
            text = self._tokenizer.decode(tokens[0, 0, start : end + 1])
            if any(stop in text for stop in stops):
                break
        return postprocess_generated_text(text, stops, None)
