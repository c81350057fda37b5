"""Modules: the ops behind ``nn.Module`` with parameters or buffers, and ``swap``, which puts them into a model."""
