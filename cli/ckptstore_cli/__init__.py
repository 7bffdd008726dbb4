"""The command line of ckptstore.

Each command parses its arguments, calls one method of Repository and passes the result to `output`.
The package uses only the public interface of the library.
"""
