"""Text to tokens: corpora, tokenizers, the token store, and the one global order of training sequences."""
