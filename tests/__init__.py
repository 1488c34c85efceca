"""What holds for every process of tests."""

import gc
import os

# Before NumPy reads it: products of small matrices are slower on several threads, which wait for each other spinning.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
gc.set_threshold(50_000, 20)  # tracing makes millions of objects, and hardly any of them are garbage in cycles
