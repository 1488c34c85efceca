"""Text to tokens: corpora, tokenizers, the token store, and the shuffled order of training sequences."""
