"""Imports, in the process that forks, what launchers import; nothing that launchers define flags in."""

import matplotlib.figure  # noqa: F401
import pyarrow  # noqa: F401
import safetensors.numpy  # noqa: F401
import scipy.optimize  # noqa: F401
import sentencepiece  # noqa: F401
import tokenizers  # noqa: F401

import jaxlab.data.prepare
import jaxlab.evaluate.tasks
import jaxlab.interop.hugging_face
import jaxlab.interop.tokenizer
import jaxlab.interop.workdir
import jaxlab.laws.batch_size
import jaxlab.laws.chinchilla
import jaxlab.laws.diloco
import jaxlab.laws.floating_point
import jaxlab.laws.spectral
import jaxlab.studies.report
import jaxlab.studies.worker
import jaxlab.train.branch
import jaxlab.train.loop  # noqa: F401
import launch.entry  # noqa: F401
