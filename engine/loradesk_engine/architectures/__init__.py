"""The model families that the decoder runs: one file a family, found by `registry`. Nothing here needs torch."""
