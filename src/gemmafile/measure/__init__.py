"""Measuring a model on texts: `perplexity.py` scores one, `divergence.py` compares with what another model said of it,
`choices.py` scores multiple choices."""
