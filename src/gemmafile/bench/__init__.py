"""Measuring: what the machine can do, what a pass needs of it, and how long passes take here and elsewhere."""
