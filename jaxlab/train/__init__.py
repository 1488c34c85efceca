"""From a config to a trained model: state, step, loop, checkpoints, logs."""
