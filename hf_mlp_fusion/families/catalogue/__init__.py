"""The families that the package knows, in files by kind. Each file has a tuple `FAMILIES`, and is found by itself."""
