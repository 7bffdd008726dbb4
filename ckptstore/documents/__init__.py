"""The documents of a repository, as pure values: `docs/reference/format.md` as code.

Nothing here opens a file, reads a clock or draws a random number: bytes in, values out, and back.
"""
