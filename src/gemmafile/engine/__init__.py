"""The loop: KV pages, batches, sampling, stopping. Knows token ids, never text."""
