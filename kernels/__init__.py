"""Kernels: the mathematics of each op, one file per op and backend.

C++ and CUDA files never see torch; Triton files import torch and triton and nothing of ser_fast.
"""
