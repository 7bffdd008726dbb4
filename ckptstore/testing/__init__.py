"""For tests of what is built with ckptstore, and of new storages. Imported only by tests."""
