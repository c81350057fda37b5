"""``ser-fast tune``: prove the kernels on the user's device, time them, choose, and store the choices.

The process that the user starts opens no GPU: every proof and timing runs in a worker process of its own, so a kernel
that hangs or crashes bans its backend for its op and costs nothing else. :mod:`ser_fast.backends.tuned` reads what
``store`` writes.
"""
