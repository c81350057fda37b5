"""Ops: schema, reference implementation, derivative and functional form of each. No ``nn.Module`` lives here.

One file per op. Its ``reference`` is plain PyTorch for any device and dtype; kernels are tested against it.
"""
