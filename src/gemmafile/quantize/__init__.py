"""Quantising: a model's file made smaller. `mixture.py` chooses each tensor's format, `stream.py` computes the blocks,
`write.py` puts the file together; `importance.py` reads and writes importance matrices."""
