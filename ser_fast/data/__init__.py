"""Audio files to padded batches: corpora, audio, splits, augmentation, batches and a cache of features.

This package knows no model and no process group; of ``ser_fast`` it imports only itself.
"""
