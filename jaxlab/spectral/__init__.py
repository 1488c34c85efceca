"""Spectra of activations: the streamed covariance, and what its eigenvalues say of the width in use."""
