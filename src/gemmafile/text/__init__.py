"""Text to token ids and back, and chats to prompts. Start with `tokenizer.py`, then `chat.py`."""
