"""`python -m ckptstore_cli` is the same program as `ckptstore`."""

from ckptstore_cli.main import main

if __name__ == "__main__":
    main()
