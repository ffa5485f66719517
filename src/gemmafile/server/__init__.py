"""The server: HTTP in, token ids to the engine's process, answers out. Read app.py, then answering.py."""
