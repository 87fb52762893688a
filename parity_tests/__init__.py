"""The parity suite: every part of the port against the reference, in float32 on both sides."""

import os

os.environ["MLX_ENABLE_TF32"] = "0"  # before MLX computes: TF32 has ten bits less than float32
