"""PyTorch reference of CosyVoice 3: it computes what the original computes, and has no training code.

Floats have the dtype of the model's weights where a docstring names no dtype: float32, as in the original, or float64
for the oracle. Paths such as cosyvoice/flow/flow.py are files of the original; `port/` has a twin of each file here.
"""
