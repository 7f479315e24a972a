"""Kernels for the CPU, compiled from C when the project is installed where a compiler is there (`packaging/native.py`).

Everything has a torch path beside it, which runs where they are missing. Sums are float32, as in torch.
"""
