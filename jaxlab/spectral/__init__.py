"""Spectra of activations: their covariance accumulated over batches, and ranks computed from its eigenvalues."""
