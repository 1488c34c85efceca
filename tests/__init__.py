import os

# Before NumPy reads it: products of small matrices are slower on several threads, which wait for each other spinning.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
