"""Text to tokens on disk: corpora, tokenizers, token files, batches."""
