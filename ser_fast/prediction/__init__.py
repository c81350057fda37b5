"""Audio files in, tables of predictions out: listing, decoding, the model, and output in parts that resume.

This package prints nothing; it reports progress and sentences through functions that it is given.
"""
