"""The command line of ckptstore: parse, call one verb of Repository, hand the value to output."""
