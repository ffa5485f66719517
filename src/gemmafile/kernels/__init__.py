"""The maths: one file a quantisation format, and the replays of a tape on the CPU."""
