"""Options in, run folder out: training, cross-validation, metrics and checkpoints.

This package prints nothing; it reports progress to a :class:`ser_fast.training.reporter.Reporter`.
"""
