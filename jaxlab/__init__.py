"""jaxlab: four results on training language models as one JAX system."""
