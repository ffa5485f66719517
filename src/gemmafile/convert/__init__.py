"""Models from one format to another: a checkpoint to GGUF and back, adapters, a file in parts and whole again."""
