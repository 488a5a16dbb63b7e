"""From an AnnData to batches of tokens: resolve, matrix, vocabulary, binning, tokens."""
