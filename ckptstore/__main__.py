"""`python -m ckptstore` is the program `ckptstore`."""

from ckptstore_cli.main import main

if __name__ == "__main__":
    main()
