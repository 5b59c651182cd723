"""A field in the terms of other libraries: one module for each, which imports its library and nothing else does.

The adapters use the public API alone, but for `xla`, which hands a field to code without Python. Where a library is
missing, importing its adapter raises ImportError with the name of the extra that installs it.
"""
