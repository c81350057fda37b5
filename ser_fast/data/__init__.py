"""Audio files to padded batches: corpora, audio, splits, augmentation, batches and a cache of features.

This package knows no model and no process group; it imports only itself, ``ser_fast.ops`` and ``ser_fast._require``.
"""
