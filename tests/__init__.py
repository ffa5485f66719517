"""Tests; the folders mirror src/gemmafile. `tests/oracles` holds the other implementations we are judged by."""
