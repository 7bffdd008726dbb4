"""How fast ckptstore is, against its peers and what the machine can do: `python -m bench`."""
